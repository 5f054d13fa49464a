"""A pod and what is reported of it, as a workload of the mesh. Pure; filled in as istiod does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from control.reports import PodReport
from control.services import key_of, ports_of, waypoint_of
from mesh.authorization import Listed
from mesh.manifests import Node, Pod, Service
from mesh.workload import Locality, NetworkMode, TunnelProtocol, Workload

_NAME_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


@dataclass(frozen=True, slots=True)
class MeshNames:
    """What this mesh is called."""

    cluster: str = "Kubernetes"
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    trust_domain_aliases: frozenset[str] = frozenset()


def workload_uid(names: MeshNames, namespace: str, name: str) -> str:
    """A pod's resource name."""
    return f"{names.cluster}//Pod/{namespace}/{name}"


def mesh_workload(
    names: MeshNames,
    pod: Pod,
    report: PodReport,
    services: Iterable[Service],
    policies: Listed,
    node: Node,
) -> Workload | None:
    """The pod as proxies know it; None while it is no endpoint: without addresses, or ended."""
    if not report.addresses or report.is_over:
        return None
    labels = pod.labels
    host_network = pod.spec.host_network
    return Workload(
        uid=workload_uid(names, pod.namespace, pod.name),
        name=pod.name,
        namespace=pod.namespace,
        addresses=report.addresses,
        protocol=TunnelProtocol.HBONE if report.enrolled and not host_network else TunnelProtocol.NONE,
        trust_domain=names.trust_domain,
        service_account=pod.spec.service_account,
        # A namespace's label speaks of its services: a waypoint is for services unless it says otherwise.
        waypoint=waypoint_of(pod.namespace, labels),
        node=report.node,
        canonical_name=_label(labels, _NAME_LABELS, pod.workload_name),
        canonical_revision=_label(labels, _REVISION_LABELS, "latest"),
        workload_type="pod",
        workload_name=pod.workload_name,
        authorization_policies=policies.keys,
        healthy=report.ready,
        cluster_id=names.cluster,
        services={key_of(service): ports_of(pod, service) for service in services},
        locality=_locality(node),
        network_mode=NetworkMode.HOST_NETWORK if host_network else NetworkMode.STANDARD,
        policy_sources=dict(policies.sources),
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
