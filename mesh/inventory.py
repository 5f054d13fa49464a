"""What the data plane knows about the mesh, indexed for the questions a connection asks.

`Inventory` joins workloads and services: a workload names the services it serves, and may arrive before them. Membership is
therefore kept apart from both, and an endpoint list is joined when somebody asks (and remembered until one of its parts
changes). So nothing depends on the order in which resources arrive: an endpoint waits for its service, a service that is
updated keeps its endpoints, a change of health policy takes effect at once, and CIDR addresses see the same endpoints.

It reads neither time nor sockets nor randomness: choosing among endpoints is the caller's.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from mesh.groups import Groups, PairGroups
from mesh.workload import Address, NamespacedHostname, NetworkAddress, NetworkMode, Service, TunnelProtocol, Workload


class Endpoint(NamedTuple):
    """A workload as one service sees it: with the target ports that it named itself, by service port."""

    workload: Workload
    ports: dict[int, int]


class _CIDRs:
    """Services by the CIDR addresses they claim; a lookup tries every prefix length in use, longest first."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, int], dict[int, dict[int, dict[str, Service]]]] = {}

    @staticmethod
    def _bits(address: Address, prefix: int) -> int:
        return int(address) >> (address.max_prefixlen - prefix)

    def add(self, vip: NetworkAddress, prefix: int, service: Service) -> None:
        lengths = self._claims.setdefault((vip.network, vip.address.version), {})
        lengths.setdefault(prefix, {}).setdefault(self._bits(vip.address, prefix), {})[service.key] = service

    def remove(self, vip: NetworkAddress, prefix: int, key: str) -> None:
        """Take a service's claim out. Two of its addresses may be one range: the second time it is nothing."""
        lengths = self._claims.get((vip.network, vip.address.version), {})
        claims = lengths.get(prefix, {})
        bits = self._bits(vip.address, prefix)
        claims.get(bits, {}).pop(key, None)
        if not claims.get(bits, True):
            del claims[bits]
        if not lengths.get(prefix, True):
            del lengths[prefix]
        if not lengths:
            self._claims.pop((vip.network, vip.address.version), None)

    def covering(self, network: str, address: Address) -> Iterator[tuple[int, Service]]:
        """Every claim that holds the address, with its prefix length."""
        for prefix, claims in self._claims.get((network, address.version), {}).items():
            for service in claims.get(self._bits(address, prefix), {}).values():
                yield prefix, service


def _choose(services: Iterable[Service], namespace: str) -> Service | None:
    """Among services that share a name or address: the client's namespace, then canonical, then the first by key."""
    seen = [service for service in services if service.is_shown_to(namespace)]
    return min(seen, key=lambda one: (one.namespace != namespace, not one.canonical, one.key), default=None)


class Inventory:
    """Workloads and services, by every name and address under which a connection may ask for them."""

    def __init__(self) -> None:
        self._workloads: dict[str, Workload] = {}
        self._services: dict[str, Service] = {}
        self._by_address: PairGroups[str, Address, Workload] = PairGroups(_uid)
        self._by_pod: PairGroups[str, str, Workload] = PairGroups(_uid)
        self._by_own_hostname: PairGroups[str, str, Workload] = PairGroups(_uid)
        self._members: Groups[str, Workload] = Groups(_uid)
        self._by_vip: PairGroups[str, Address, Service] = PairGroups(_service_key)
        self._by_hostname: Groups[str, Service] = Groups(_service_key)
        self._cidrs = _CIDRs()
        self._joined: dict[str, tuple[Endpoint, ...]] = {}

    def apply(self, upserts: Iterable[Workload | Service], removals: Iterable[str]) -> None:
        """Take one update in: removals first, so that what an update both removes and brings is there afterwards.

        A removal names a workload's uid, else a service's `namespace/hostname`; unknown names are nothing.
        """
        for name in removals:
            self._remove_workload(name)
            self._remove_service(name)
        for one in upserts:
            if isinstance(one, Workload):
                self._remove_workload(one.uid)
                self._add_workload(one)
            else:
                self._remove_service(one.key)
                self._add_service(one)

    def _add_workload(self, workload: Workload) -> None:
        uid = workload.uid
        self._workloads[uid] = workload
        self._by_pod.add(workload.namespace, workload.name, workload)
        if workload.hostname:
            self._by_own_hostname.add(workload.namespace, workload.hostname, workload)
        for address in _own_addresses(workload):
            self._by_address.add(workload.network, address, workload)
        for key in workload.services:
            self._members.add(key, workload)
            self._joined.pop(key, None)

    def _remove_workload(self, uid: str) -> None:
        workload = self._workloads.pop(uid, None)
        if workload is None:
            return
        self._by_pod.discard(workload.namespace, workload.name, uid)
        self._by_own_hostname.discard(workload.namespace, workload.hostname, uid)
        for address in _own_addresses(workload):
            self._by_address.discard(workload.network, address, uid)
        for key in workload.services:
            self._members.discard(key, uid)
            self._joined.pop(key, None)

    def _add_service(self, service: Service) -> None:
        key = service.key
        self._services[key] = service
        self._joined.pop(key, None)
        self._by_hostname.add(service.hostname, service)
        for vip in service.vips:
            if vip.prefix is None:
                self._by_vip.add(vip.network, vip.address, service)
            else:
                self._cidrs.add(vip, vip.prefix, service)

    def _remove_service(self, key: str) -> None:
        service = self._services.pop(key, None)
        if service is None:
            return
        self._joined.pop(key, None)
        self._by_hostname.discard(service.hostname, key)
        for vip in service.vips:
            if vip.prefix is None:
                self._by_vip.discard(vip.network, vip.address, key)
            else:
                self._cidrs.remove(vip, vip.prefix, key)

    def workload(self, uid: str) -> Workload | None:
        """Find a workload by its xDS uid."""
        return self._workloads.get(uid)

    def workload_by_address(self, network: str, address: Address) -> Workload | None:
        """Find who owns an address: pods before gateways before others, then HBONE before plain, then the newest claim.

        Workloads on their node's network own none.
        """
        claims = self._by_address.of(network, address)
        # max() keeps the first of equals, and a group the order of arrival.
        return max(reversed((*claims,)), key=_claim_rank, default=None)

    def workload_of_pod(
        self, namespace: str, name: str, service_account: str, node: str = "", cluster: str = ""
    ) -> Workload | None:
        """Find the workload that stands for a pod, by what ZDS says of the pod.

        Who is no pod may have the same name and account: endpoints of a ServiceEntry, and of services, are called as that is.
        They are never a pod; a WorkloadEntry is, where there is no pod, as a machine with a proxy of its own is one. Nor does
        stand for it who is said to be on another node than `node`: the pod of that name before it moved, or another cluster's.
        Where both clusters have a node of that name, `cluster` counts.
        """
        claims = [
            one
            for one in self._by_pod.of(namespace, name)
            if one.service_account == service_account and _may_be_pod(one) and (not node or one.node in ("", node))
        ]
        return min(claims, key=lambda one: (_is_entry(one), one.node != node, one.cluster_id != cluster), default=None)

    def workload_by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """Find a workload by the hostname that it has itself, as a gateway outside the cluster may."""
        return next(iter(self._by_own_hostname.of(namespace, hostname)), None)

    def service(self, key: str) -> Service | None:
        """Find a service by `namespace/hostname`."""
        return self._services.get(key)

    def service_by_vip(self, network: str, address: Address, namespace: str = "") -> Service | None:
        """Find the service behind an address, as seen by a client in a namespace (empty: not known).

        An exact address beats every CIDR; among CIDRs the client's namespace decides, then the prefix, then canonical.
        """
        exact = _choose(self._by_vip.of(network, address), namespace)
        if exact is not None:
            return exact
        covering = [claim for claim in self._cidrs.covering(network, address) if claim[1].is_shown_to(namespace)]
        best = min(
            covering,
            key=lambda claim: (claim[1].namespace != namespace, -claim[0], not claim[1].canonical, claim[1].key),
            default=None,
        )
        return best[1] if best else None

    def service_by_hostname(self, hostname: str, namespace: str = "") -> Service | None:
        """Find the service with a hostname, as seen by a client in a namespace (empty: not known)."""
        return _choose(self._by_hostname.of(hostname), namespace)

    def services_by_hostname(self, hostname: str) -> Collection[Service]:
        """List the services with a hostname, whoever may see them."""
        return self._by_hostname.of(hostname)

    def endpoint_of_pod(self, service: Service, name: str) -> Workload | None:
        """Find the pod of a name, in a service's own namespace, among what serves that service."""
        for workload in self._by_pod.of(service.namespace, name):
            if service.key in workload.services and (workload.healthy or service.allow_unhealthy):
                return workload
        return None

    def by_address(self, network: str, address: Address, namespace: str = "") -> Workload | Service | None:
        """Find what an address stands for: the workload that owns it before any service."""
        return self.workload_by_address(network, address) or self.service_by_vip(network, address, namespace)

    def referred(self, where: NamespacedHostname | NetworkAddress) -> Workload | Service | None:
        """Find what a reference to a gateway means: by address as `by_address`, by name a service before a workload."""
        if isinstance(where, NetworkAddress):
            return self.by_address(where.network, where.address)
        return self.service(str(where)) or self.workload_by_hostname(where.namespace, where.hostname)

    def endpoints(self, service_key: str) -> Sequence[Endpoint]:
        """List what serves a service: its workloads, without the unhealthy ones unless the service asks for them.

        Empty for a service that is not known.
        """
        joined = self._joined.get(service_key)
        if joined is None:
            service = self._services.get(service_key)
            if service is None:
                return ()
            members = self._members.of(service_key)
            joined = tuple(
                Endpoint(workload, workload.services[service_key])
                for workload in members
                if workload.healthy or service.allow_unhealthy
            )
            self._joined[service_key] = joined
        return joined

    def staged(self) -> dict[str, list[Endpoint]]:
        """List the endpoints whose service has not arrived yet, by its key."""
        return {
            key: [Endpoint(workload, workload.services[key]) for workload in self._members.of(key)]
            for key in self._members
            if key not in self._services
        }

    def workloads(self) -> Iterable[Workload]:
        """List all workloads."""
        return self._workloads.values()

    def services(self) -> Iterable[Service]:
        """List all services."""
        return self._services.values()


_uid = attrgetter("uid")
_service_key = attrgetter("key")


def _own_addresses(workload: Workload) -> Sequence[Address]:
    return workload.addresses if workload.network_mode is not NetworkMode.HOST_NETWORK else ()


def _may_be_pod(workload: Workload) -> bool:
    return "/networking.istio.io/ServiceEntry/" not in workload.uid and "/discovery.k8s.io/" not in workload.uid


def _is_entry(workload: Workload) -> bool:
    return "/networking.istio.io/WorkloadEntry/" in workload.uid


def _claim_rank(workload: Workload) -> tuple[bool, bool, bool]:
    return workload.is_pod, workload.uid.startswith("NetworkGateway/"), workload.protocol is TunnelProtocol.HBONE
