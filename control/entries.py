"""A ServiceEntry as services of the mesh, one for each of its hosts; its endpoints, and an EndpointSlice's, as workloads. Pure.

Filled in as istiod does, but: `exportTo` counts, and an endpoint that names no network is on the mesh's own, whatever the one
before it says.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network

from control.entry_addresses import vip_name
from control.services import (
    AnyService,
    ingress_wish,
    keys_of,
    noted_preferences,
    protocols_of,
    shares,
    waypoint_of,
)
from control.topology import Topology
from control.workloads import MeshNames, endpoint_workload, waypoint_of_workload
from mesh.authorization import Listed
from mesh.manifests import Endpoint, EndpointSlice, Namespace, Object, Problem, ServiceEntry
from mesh.manifests import Service as ServiceObject
from mesh.workload import Address, BalancingMode, Network, NetworkAddress, NetworkMode, Service, Workload


def entry_services(
    entry: ServiceEntry,
    addresses: Mapping[str, tuple[Address, ...]],
    shared: Mapping[str, int],
    owner: Namespace | None,
    topology: Topology,
    identities: Iterable[str],
) -> Iterator[Service]:
    """Its services. `shared`: how many have a host; `identities` as of `control.services.mesh_service`."""
    if not entry.is_told:
        return
    labels = owner.labels if owner is not None else {}
    waypoint = waypoint_of(entry.namespace, topology, entry.labels, labels)
    preferences = noted_preferences(entry, owner)
    passes = entry.resolution == "NONE"
    for host in entry.hosts:
        given = addresses.get(vip_name(entry.namespace, host), ()) if entry.gets_addresses(host) else ()
        vips = [*entry.addresses, *map(ip_network, given)]
        yield Service(
            name=entry.name,
            namespace=entry.namespace,
            hostname=host,
            vips=tuple(_vip(network, vip) for network in dict.fromkeys(("", *topology.networks)) for vip in vips),
            ports={port.port: port.target for port in entry.ports if isinstance(port.target, int)},
            subject_alt_names=tuple(dict.fromkeys((*entry.subject_alt_names, *sorted(identities)))),
            waypoint=waypoint,
            weighted_waypoints=shares(entry, owner, waypoint, topology) if waypoint is not None else (),
            preferences=preferences,
            mode=BalancingMode.PASSTHROUGH if passes else BalancingMode.FAILOVER if preferences else BalancingMode.UNSPECIFIED,
            allow_unhealthy=passes,
            canonical=shared[host] == 1 and not host.endswith(f".svc.{topology.domain}"),
            namespace_only=entry.is_private,
            shown_to=() if entry.is_private else entry.shown_to,
            app_protocols=protocols_of(entry),
            ingress_use_waypoint=waypoint is not None and ingress_wish((entry.labels, labels)),
        )


def _vip(network: str, vip: Network) -> NetworkAddress:
    return NetworkAddress(network, vip.network_address, vip.prefixlen if vip.prefixlen < vip.max_prefixlen else None)


def entry_workloads(
    names: MeshNames, entry: ServiceEntry, policies: Listed, owner: Namespace | None, topology: Topology
) -> Iterator[Workload]:
    """Those whom it lists; where DNS is to say who they are, one for each host."""
    if not entry.is_told:
        return
    where = f"{names.cluster}/networking.istio.io/ServiceEntry/{entry.namespace}/{entry.name}"
    for endpoint in entry.endpoints:
        waypoint = waypoint_of_workload(entry.namespace, endpoint.labels, owner, topology)
        uid = f"{where}/{endpoint.address or endpoint.network}"
        yield endpoint_workload(names, uid, entry.metadata, endpoint, (entry,), policies, topology, waypoint)
    for host in entry.hosts if entry.is_resolved else ():
        services = (replace(entry, hosts=(host,)),)
        yield endpoint_workload(names, f"{where}/{host}", entry.metadata, Endpoint(host), services, policies, topology, None)


def slice_workloads(
    names: MeshNames, one: EndpointSlice, service: ServiceObject | None, topology: Topology
) -> Iterator[Workload]:
    """Those of whom an EndpointSlice knows the addresses and nothing else, which may be somebody else's too."""
    if service is None:
        return
    ports = _slice_ports(one, service)
    for endpoint in one.endpoints:
        if not endpoint.pod:
            yield Workload(
                uid=f"{names.cluster}/discovery.k8s.io/EndpointSlice/{one.namespace}/{one.name}/{endpoint.addresses[0]}",
                name=one.name,
                namespace=one.namespace,
                addresses=endpoint.addresses,
                network=topology.root,
                trust_domain=names.trust_domain,
                service_account="",
                workload_type="deployment",  # 0 on the wire: not said
                healthy=endpoint.is_ready,
                cluster_id=names.cluster,
                services=dict.fromkeys(keys_of(service, topology.domain), ports),
                network_mode=NetworkMode.HOST_NETWORK,
            )


def served_by_slices(
    pod: str, slices: Iterable[EndpointSlice], services: Mapping[str, ServiceObject], domain: str
) -> dict[str, dict[int, int]]:
    """By which of its ports a pod serves the services whose slices name it as ready; `services`: of its namespace, by name.

    Of slices that differ about a port the last by name counts, whichever came first.
    """
    served: dict[str, dict[int, int]] = {}
    for one in sorted(slices, key=lambda one: one.title):
        service = services.get(one.service)
        if service is not None and any(endpoint.pod == pod and endpoint.is_ready for endpoint in one.endpoints):
            for key in keys_of(service, domain):
                served[key] = served.get(key, {}) | _slice_ports(one, service)
    return served


def _slice_ports(one: EndpointSlice, service: ServiceObject) -> dict[int, int]:
    numbers = {name: port for name, port, protocol in one.ports if protocol == "TCP"}
    return {port.port: numbers[port.name] for port in service.ports if port.protocol == "TCP" and port.name in numbers}


def clashes(objects: Iterable[Object], domain: str) -> Iterator[Problem]:
    """Hosts that somebody else of their namespace has: proxies know a service by its namespace and hostname."""
    owners: dict[str, str] = {}
    services = [one for one in objects if isinstance(one, AnyService)]
    for one in sorted(services, key=lambda one: isinstance(one, ServiceEntry)):
        for key in keys_of(one, domain):
            first = owners.setdefault(key, one.title)
            if first != one.title:
                host = key.partition("/")[2]
                yield Problem("", 0, one.title, "spec.hosts", f"{host} is the name of {first}: take it out of one of them")
