"""Who stands behind a service, a waypoint's name or address, or a network gateway's: pure, able to say why nobody does.

Source: facts of Istio's ztunnel, sections 5.1 and 5.2.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mesh.identity import Identity
from mesh.inventory import Endpoint, Inventory
from mesh.workload import Address, BalancingMode, GatewayAddress, IPFamilies, NetworkAddress, Service, Workload
from ztunnel.balance import NOBODY, Role, choose, eligible, reachable, target_port
from ztunnel.outliers import Choice, without

_FAMILIES = {IPFamilies.IPV4_ONLY: 4, IPFamilies.IPV6_ONLY: 6}
_MENDS: dict[Role, str] = {
    "waypoint": "create that waypoint, or take the wish for it away (label istio.io/use-waypoint)",
    "network gateway": "the control plane must know that gateway as a workload or a service",
}


class Upstream(NamedTuple):
    """A workload that can take a connection."""

    workload: Workload
    address: Address | None
    """None: it has only a hostname, or only a network gateway leads to it."""
    port: int
    service: Service | None = None
    """The service that it was chosen from."""

    @property
    def names(self) -> frozenset[str]:
        """SPIFFE ids that its service gives it besides its own."""
        return parsable(self.service.subject_alt_names) if self.service is not None else NOBODY

    @property
    def expected(self) -> frozenset[str]:
        """SPIFFE ids of which it must prove one."""
        return self.names | {str(self.workload.identity)}

    @property
    def choice(self) -> Choice | None:
        """None where there was nobody else."""
        return Choice(self.workload.uid, self.port) if self.service is not None else None


class NoUpstream(Exception):
    """Nobody can take the connection; the text says why, and what would mend it."""

    def __init__(self, reason: str, service: Service | None = None, workload: Workload | None = None) -> None:
        super().__init__(reason)
        self.service = service
        self.workload = workload


class Search:
    """One connection's way through the inventory; every choice spends some of its chance."""

    def __init__(
        self,
        inventory: Inventory,
        client: Workload,
        source: Address,
        wanted: Address,
        chance: float,
        avoid: frozenset[str],
        aside: frozenset[Choice],
    ) -> None:
        """`wanted`: the address that the client dialled, whose family is preferred; `avoid`: uids that are not chosen.

        `aside`: who is not chosen while at least half of a service's endpoints are left, and one for this client.
        """
        self._inventory = inventory
        self._client = client
        self._source = source
        self._aside = aside
        self._wanted = wanted
        self.avoid = avoid
        self.chance = chance
        self.drawn = False
        """Chance had a say."""

    def endpoint(self, service: Service, port: int, target: Address, role: Role = "destination") -> Upstream:
        """An endpoint of a service. Raises: NoUpstream."""
        endpoints = self._inventory.endpoints(service.key)
        candidates = eligible(service, endpoints, self._client, port, self.avoid, role)
        self.drawn |= len(candidates) > 1
        usual = candidates
        if self._aside:
            choices = ((one.workload.uid, target_port(service, one, port, role)) for one in candidates)
            usual = without(candidates, frozenset(choice[0] for choice in choices if choice in self._aside))
        chosen, chance = choose(service, usual, self._client, self._source, self.chance)
        if chosen is None and len(usual) < len(candidates):  # a STRICT service has nobody else for this client
            chosen, chance = choose(service, candidates, self._client, self._source, self.chance)
        self.chance = chance
        if chosen is None:
            raise NoUpstream(_why_nobody(service, endpoints, candidates, self._client, port, self.avoid, role), service)
        inner = target_port(service, chosen, port, role)
        assert inner is not None  # else it is not eligible
        return Upstream(chosen.workload, _address_of(chosen.workload, service, target), inner, service)

    def gateway(self, gateway: GatewayAddress, role: Role, wanted_by: str) -> Upstream:
        """A waypoint or a network gateway. By name it adapts to the client's family, by address it is that address.

        Raises: NoUpstream; there is no way round a gateway.
        """
        where = gateway.destination
        inventory, client = self._inventory, self._client
        if isinstance(where, NetworkAddress):
            target = where.address
            service = inventory.service_by_vip(where.network, target, client.namespace)
            workload = inventory.workload_by_address(where.network, target)
        else:
            target = self._wanted
            service = inventory.service(str(where))
            workload = inventory.workload_by_hostname(where.namespace, where.hostname)
        if service is not None and (not isinstance(where, NetworkAddress) or service.mode is not BalancingMode.PASSTHROUGH):
            try:
                return self.endpoint(service, gateway.hbone_port, target, role)
            except NoUpstream as error:
                raise NoUpstream(f"unknown {role}: {gateway}, wanted by {wanted_by}: {error}") from None
        if service is None and workload is not None:
            return Upstream(workload, _address_of(workload, None, target), gateway.hbone_port)
        why = "is not known" if service is None else "is an address of a PASSTHROUGH service, which leads to no endpoint"
        raise NoUpstream(f"unknown {role}: {gateway}, wanted by {wanted_by}, {why}; {_MENDS[role]}")


@lru_cache(1024)
def parsable(names: tuple[str, ...]) -> frozenset[str]:
    """The workload identities among a service's names: others are of no use to anybody."""
    found = set()
    for name in names:
        try:
            found.add(str(Identity.parse(name)))
        except ValueError:
            continue
    return frozenset(found)


def _address_of(workload: Workload, service: Service | None, target: Address) -> Address | None:
    """Of several addresses: the target itself, else of the service's families; there of the target's family, else the first."""
    if target in workload.addresses:
        return target
    family = _FAMILIES.get(service.ip_families) if service is not None else None
    fit = [address for address in workload.addresses if family is None or address.version == family]
    return next((address for address in fit if address.version == target.version), fit[0] if fit else None)


def _why_nobody(
    service: Service,
    endpoints: Sequence[Endpoint],
    candidates: Sequence[Endpoint],
    client: Workload,
    port: int,
    avoid: frozenset[str],
    role: Role,
) -> str:
    """Why no endpoint of a service was chosen, in the order in which an operator would look."""
    name = f"service {service.key}"
    if role != "waypoint" and port not in service.ports:
        listed = ", ".join(map(str, sorted(service.ports))) or "none"
        return f"{name} has no port {port} (its ports: {listed})"
    if not endpoints:
        return f"{name} has no endpoint that is ready"
    if candidates:
        scopes = ", ".join(scope.name for scope in service.preferences)
        return f"{name} is STRICT, and none of its {len(candidates)} endpoints matches the client's {scopes}"
    reasons = (
        ("have no capacity", [one for one in endpoints if one.workload.capacity <= 0]),
        ("are set aside after failures", [one for one in endpoints if one.workload.uid in avoid]),
        *_out_of_reach(endpoints, client, role),
        (f"have no port {port}", [one for one in endpoints if target_port(service, one, port, role) is None]),
    )
    shown = "; ".join(f"{len(some)} {text}" for text, some in reasons if some)
    return f"{name}: of {len(endpoints)} endpoints {shown}"


def _out_of_reach(endpoints: Sequence[Endpoint], client: Workload, role: Role) -> list[tuple[str, list[Endpoint]]]:
    """Those that no way leads to, by what is missing: an address, or the gateway of which network."""
    missing: dict[str, list[Endpoint]] = {}
    for one in endpoints:
        if not reachable(one.workload, client, role):
            local = one.workload.network == client.network or role == "network gateway"
            network = one.workload.network or "''"
            text = "have no address" if local else f"are on network {network}, to which no gateway is known"
            missing.setdefault(text, []).append(one)
    return list(missing.items())
