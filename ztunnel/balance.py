"""Choosing among the endpoints of a service: eligible, then ranked by preference, then by chance weighted by capacity.

Source: facts of Istio's ztunnel, section 5.2. Chance is an argument, and what a choice leaves of it comes back with the choice.

Where a service wants one client at one endpoint, rendezvous hashing takes the place of chance: every worker of every node picks
the same endpoint without telling the others, each endpoint has its share of the clients by capacity, and only the clients of an
endpoint that goes move on. (D. Thaler, C. Ravishankar: Using Name-Based Mappings to Increase Hit Rates, 1998.)
"""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, TypeVar

from mesh.inventory import Endpoint
from mesh.workload import Address, BalancingMode, GatewayAddress, Scope, Service, Workload

Role = Literal["destination", "waypoint", "network gateway"]
"""As what an endpoint is looked for."""
_Option = TypeVar("_Option")
NOBODY: frozenset[str] = frozenset()


def target_port(service: Service, endpoint: Endpoint, port: int, role: Role = "destination") -> int | None:
    """The port of an endpoint behind a service's port; None when the service has no such port, or a name without a number.

    A waypoint with an application tunnel takes any port: nobody wrote down a port that no user dials.
    """
    tunnel = endpoint.workload.application_tunnel if role == "waypoint" else None
    listed = service.ports.get(port)
    if listed is None and tunnel is None:
        return None
    own = endpoint.ports.get(port) or listed
    if own:
        return own
    return port if tunnel and tunnel.port else None


def reachable(workload: Workload, client: Workload, role: Role = "destination") -> bool:
    """Whether a client has a way to a workload: an address or a name on its own network, a gateway to another.

    A workload of the client's own network names a gateway too, which is for others. Gateways are reached from all networks.
    """
    if workload.network == client.network or role == "network gateway":
        return bool(workload.addresses or workload.hostname)
    return workload.network_gateway is not None


def eligible(
    service: Service,
    endpoints: Sequence[Endpoint],
    client: Workload,
    port: int,
    avoid: frozenset[str] = NOBODY,
    role: Role = "destination",
) -> list[Endpoint]:
    """Those that may be chosen: healthy or wanted all the same, reachable, with the port, of some capacity, not to avoid."""
    return [
        endpoint
        for endpoint in endpoints
        if (endpoint.workload.healthy or service.allow_unhealthy)
        and endpoint.workload.capacity > 0
        and endpoint.workload.uid not in avoid
        and reachable(endpoint.workload, client, role)
        and target_port(service, endpoint, port, role) is not None
    ]


def choose(
    service: Service, candidates: list[Endpoint], client: Workload, source: Address, chance: float
) -> tuple[Endpoint | None, float]:
    """One of the eligible endpoints for a client, and the chance that is left; None when there is none that it wants."""
    if service.mode is not BalancingMode.UNSPECIFIED:  # PASSTHROUGH is a gateway's: by its name it has endpoints all the same
        candidates = _preferred(service, candidates, client)
    if service.by_client_address:
        return max(candidates, key=lambda endpoint: _affinity(source, endpoint.workload), default=None), chance
    return weighted(candidates, [endpoint.workload.capacity for endpoint in candidates], chance)


def _affinity(source: Address, workload: Workload) -> float:
    """How much an endpoint is a client's own: the highest of all its service's is. Spread like chance, by capacity."""
    digest = blake2b(workload.uid.encode(), key=source.packed, digest_size=8).digest()
    return -workload.capacity / math.log((int.from_bytes(digest, "big") + 0.5) / 2**64)


def weighted(options: Sequence[_Option], weights: Sequence[int], chance: float) -> tuple[_Option | None, float]:
    """One option, by weight; None when all weigh nothing. `chance` is evenly spread over [0, 1), and so is what comes back."""
    mark = chance * sum(weights)
    last: _Option | None = None
    for option, weight in zip(options, weights, strict=True):
        if weight > 0:
            if mark < weight:
                return option, max(mark, 0.0) / weight
            mark -= weight
            last = option
    return last, 0.0  # the last one: rounding


def sample_waypoint(service: Service, chance: float) -> tuple[GatewayAddress | None, float]:
    """The waypoint of a service for one connection: by weight, else the single one, else none."""
    shares = service.weighted_waypoints
    if shares:
        one, rest = weighted(shares, [share.weight for share in shares], chance)
        if one is not None:
            return one.destination, rest
    return service.waypoint, chance


def _preferred(service: Service, endpoints: list[Endpoint], client: Workload) -> list[Endpoint]:
    ranked = [(*_rank(service.preferences, client, endpoint.workload), endpoint) for endpoint in endpoints]
    if service.mode is BalancingMode.STRICT:
        ranked = [one for one in ranked if one[0] == len(service.preferences)]
    best = max((rank for _, rank, _ in ranked), default=0)
    return [endpoint for _, rank, endpoint in ranked if rank == best]


def _rank(preferences: Sequence[Scope], client: Workload, workload: Workload) -> tuple[int, int]:
    """How many preferences match until the first that does not, and the rank that follows from it.

    NETWORK in first place is special: a mismatch does not end the count, and a match outweighs all that follow.
    """
    matched = rank = 0
    for place, scope in enumerate(preferences):
        network_first = place == 0 and scope is Scope.NETWORK
        if _matches(scope, client, workload):
            matched += 1
            rank += len(preferences) if network_first else 1
        elif not network_first:
            break
    return matched, rank


def _matches(scope: Scope, client: Workload, workload: Workload) -> bool:
    ours, theirs = client.locality, workload.locality
    if scope is Scope.REGION:
        return ours.region == theirs.region
    if scope is Scope.ZONE:
        return ours.zone == theirs.zone
    if scope is Scope.SUBZONE:
        return ours.subzone == theirs.subzone
    if scope is Scope.NODE:
        return client.node == workload.node
    if scope is Scope.CLUSTER:
        return client.cluster_id == workload.cluster_id
    return client.network == workload.network
