"""A pod and what is reported of it, or a WorkloadEntry, as a workload of the mesh. Pure; filled in as istiod does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from control.reports import PodReport
from control.services import AnyService, served_by_endpoint, served_by_pod, waypoint_named
from control.topology import NetworkGateway, Topology
from mesh.authorization import Listed
from mesh.domains import CLUSTER_DOMAIN, TRUST_DOMAIN
from mesh.manifests import USE_WAYPOINT, Endpoint, Metadata, Namespace, Node, Pod, WorkloadEntry, waypoint_wish
from mesh.workload import GatewayAddress, Locality, NetworkMode, TunnelProtocol, Workload

_TUNNEL = "networking.istio.io/tunnel"
"""A label: which tunnels somebody's own programs speak, `http` for HBONE."""
_REDIRECTION = "ambient.istio.io/redirection"
"""An annotation of who is no pod: `enabled` where a proxy stands before it."""
_REGISTRATION_GROUP, _WORKLOAD_NAME = "istio.io/autoRegistrationGroup", "service.istio.io/workload-name"
_NAME_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


@dataclass(frozen=True, slots=True)
class MeshNames:
    """What this mesh is called."""

    cluster: str = "Kubernetes"
    trust_domain: str = TRUST_DOMAIN
    root_namespace: str = "istio-system"
    trust_domain_aliases: frozenset[str] = frozenset()
    cluster_domain: str = CLUSTER_DOMAIN
    """In DNS."""
    waypoint_policies: bool = False
    """Whether who has a waypoint is to let it in alone (`control.waypoint_policies`)."""


def workload_uid(names: MeshNames, namespace: str, name: str) -> str:
    """A pod's resource name."""
    return f"{names.cluster}//Pod/{namespace}/{name}"


def mesh_workload(
    names: MeshNames,
    pod: Pod,
    report: PodReport,
    services: Iterable[AnyService],
    policies: Listed,
    node: Node,
    owner: Namespace | None,
    topology: Topology,
    sliced: Mapping[str, Mapping[int, int]],
) -> Workload | None:
    """The pod as proxies know it; None while it is no endpoint: without addresses, or ended.

    `sliced`: the services that it serves because slices say so, as `Workload.services`; one that selects it says it better.
    """
    if not report.addresses or report.is_over:
        return None
    labels = pod.labels
    host_network = pod.spec.host_network
    native = _is_native(labels)
    meshed = native or (report.enrolled and not host_network)
    network = topology.network_of(pod, report.node)
    served = served_by_pod(pod, services, names.cluster_domain)
    served |= {key: dict(ports) for key, ports in sliced.items() if key not in served}
    return Workload(
        uid=workload_uid(names, pod.namespace, pod.name),
        name=pod.name,
        namespace=pod.namespace,
        addresses=report.addresses,
        network=network,
        protocol=TunnelProtocol.HBONE if meshed else TunnelProtocol.NONE,
        trust_domain=names.trust_domain,
        service_account=pod.spec.service_account,
        waypoint=waypoint_of_workload(pod.namespace, labels, owner, topology),
        network_gateway=topology.gateway_to(network),
        node=report.node,
        canonical_name=_label(labels, _NAME_LABELS, pod.workload_name),
        canonical_revision=_label(labels, _REVISION_LABELS, "latest"),
        workload_type="pod",
        workload_name=pod.workload_name,
        native_tunnel=native,
        authorization_policies=policies.keys,
        healthy=report.ready,
        cluster_id=names.cluster,
        services=dict(sorted(served.items())),  # one order, whatever was before: one version on the wire
        application_tunnel=topology.tunnel_of(pod.namespace, labels),
        locality=_locality(node),
        network_mode=NetworkMode.HOST_NETWORK if host_network else NetworkMode.STANDARD,
        policy_sources=dict(policies.sources),
    )


def entry_uid(names: MeshNames, namespace: str, name: str) -> str:
    """A WorkloadEntry's resource name."""
    return f"{names.cluster}/networking.istio.io/WorkloadEntry/{namespace}/{name}"


def entry_workload(
    names: MeshNames,
    entry: WorkloadEntry,
    services: Iterable[AnyService],
    policies: Listed,
    owner: Namespace | None,
    topology: Topology,
) -> Workload:
    """A WorkloadEntry as proxies know it."""
    metadata, endpoint = replace(entry.metadata, labels=entry.labels), replace(entry.endpoint, labels=entry.labels)
    uid = entry_uid(names, entry.namespace, entry.name)
    waypoint = waypoint_of_workload(entry.namespace, entry.labels, owner, topology)
    made = endpoint_workload(names, uid, metadata, endpoint, services, policies, topology, waypoint)
    noted = entry.metadata.annotations.get(_REGISTRATION_GROUP) or entry.labels.get(_WORKLOAD_NAME) or entry.name
    return replace(made, workload_name=noted, canonical_name=_label(entry.labels, _NAME_LABELS, noted))


def endpoint_workload(
    names: MeshNames,
    uid: str,
    metadata: Metadata,
    endpoint: Endpoint,
    services: Iterable[AnyService],
    policies: Listed,
    topology: Topology,
    waypoint: GatewayAddress | None,
) -> Workload:
    """Somebody who is no pod, as proxies know it; always healthy, as nobody reports of it."""
    native = _is_native(metadata.labels)
    meshed = native or metadata.annotations.get(_REDIRECTION) == "enabled"
    network = endpoint.network or topology.root
    return Workload(
        uid=uid,
        name=metadata.name,
        namespace=metadata.namespace,
        addresses=(endpoint.ip,) if endpoint.ip is not None else (),
        hostname=endpoint.hostname,
        network=network,
        protocol=TunnelProtocol.HBONE if meshed else TunnelProtocol.NONE,
        trust_domain=names.trust_domain,
        service_account=endpoint.service_account or "default",
        waypoint=waypoint,
        network_gateway=topology.gateway_to(network),
        canonical_name=_label(metadata.labels, _NAME_LABELS, metadata.name),
        canonical_revision=_label(metadata.labels, _REVISION_LABELS, "latest"),
        workload_type="pod",
        workload_name=metadata.name,
        native_tunnel=native,
        authorization_policies=policies.keys,
        cluster_id=names.cluster,
        services=served_by_endpoint(endpoint, services, names.cluster_domain),
        application_tunnel=topology.tunnel_of(metadata.namespace, endpoint.labels),
        locality=endpoint.place,
        capacity=endpoint.weight or 1,
        policy_sources=dict(policies.sources),
    )


def _is_native(labels: Mapping[str, str]) -> bool:
    return "http" in labels.get(_TUNNEL, "").split(",")


def waypoint_of_workload(
    namespace: str, labels: Mapping[str, str], owner: Namespace | None, topology: Topology
) -> GatewayAddress | None:
    """Its own label always counts; its namespace's speaks of services, unless that waypoint's Gateway says otherwise."""
    if labels.get(USE_WAYPOINT):
        wish = waypoint_wish(namespace, labels)
    else:
        wish = waypoint_wish(namespace, owner.labels) if owner is not None else None
        if wish is not None and topology.purposes.get(wish) not in ("workload", "all"):
            return None
    return waypoint_named(wish, topology.domain) if wish is not None else None


def gateway_workload(names: MeshNames, gateway: NetworkGateway) -> Workload:
    """A way into another network, as proxies know it: what `network_gateway` of that network's workloads names."""
    return Workload(
        uid=gateway.uid,
        name=gateway.uid,
        namespace=gateway.namespace,
        addresses=() if gateway.is_hostname else (ip_address(gateway.address),),
        hostname=gateway.address if gateway.is_hostname else "",
        network=gateway.network,
        trust_domain=names.trust_domain,
        service_account=gateway.service_account,
        cluster_id=names.cluster,
    )


def _label(labels: Mapping[str, str], keys: Iterable[str], default: str) -> str:
    return next((labels[key] for key in keys if key in labels), default)


def _locality(node: Node) -> Locality:
    labels = node.labels
    return Locality(
        labels.get("topology.kubernetes.io/region", ""),
        labels.get("topology.kubernetes.io/zone", ""),
        labels.get("topology.istio.io/subzone", ""),
    )
