"""Choosing among the endpoints of a service: eligible, then ranked by preference, then by chance weighted by capacity.

Source: facts of Istio's ztunnel, section 5.2. Chance is an argument.
"""

from collections.abc import Sequence

from mesh.inventory import Endpoint
from mesh.workload import BalancingMode, Scope, Service, Workload


def target_port(service: Service, endpoint: Endpoint, port: int) -> int | None:
    """The port of an endpoint behind a service's port; None when the service has no such port, or a name without a number."""
    own = endpoint.ports.get(port)
    if own:
        return own
    listed = service.ports.get(port)
    if listed is None:
        return None
    if listed:
        return listed
    tunnel = endpoint.workload.application_tunnel
    return port if tunnel and tunnel.port else None


def choose(service: Service, endpoints: Sequence[Endpoint], client: Workload, port: int, chance: float) -> Endpoint | None:
    """One endpoint of a service for a client; None when there is none. `chance` is evenly spread over [0, 1)."""
    eligible = [
        endpoint
        for endpoint in endpoints
        if (endpoint.workload.healthy or service.allow_unhealthy)
        and (endpoint.workload.addresses or endpoint.workload.hostname or endpoint.workload.network_gateway)
        and endpoint.workload.capacity > 0
        and target_port(service, endpoint, port) is not None
    ]
    if service.mode in (BalancingMode.STRICT, BalancingMode.FAILOVER):
        eligible = _preferred(service, eligible, client)
    total = sum(endpoint.workload.capacity for endpoint in eligible)
    mark = chance * total
    for endpoint in eligible:
        mark -= endpoint.workload.capacity
        if mark < 0:
            return endpoint
    return eligible[-1] if eligible else None


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
            rank += max(1, len(preferences) - 1) if network_first else 1
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
    if scope is Scope.NETWORK:
        return client.network == workload.network
    return True
