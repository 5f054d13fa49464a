"""Policies by which who is behind a waypoint lets it in, and so nobody else but whom an AuthorizationPolicy allows. Pure.

As istiod makes them where it is told to (PILOT_AUTO_ALLOW_WAYPOINT_POLICY), but: one for a waypoint that is not there, or that
nobody stands behind, lets nobody in, where istiod makes none and so lets in everybody.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from control.topology import Key
from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.workload import GatewayAddress, NamespacedHostname, Service, Workload

_PREFIX = "istio_allow_waypoint_"
_SPIFFE = "spiffe://"


def waypoint_policy(waypoint: Key, identities: Iterable[str]) -> Policy:
    """The policy of one waypoint, as whose `identities` it speaks."""
    principals = tuple(StringMatch("exact", one.removeprefix(_SPIFFE)) for one in sorted(identities))
    rules = (((Match(principals=principals),),),) if principals else ()
    return Policy(waypoint[0], _name(waypoint), Scope.WORKLOAD_SELECTOR, Action.ALLOW, rules)


def guarded(workload: Workload, services: Mapping[str, Service]) -> Workload:
    """The workload, with the policies of its own waypoint's and of those of its services, where it is none of these itself."""
    found = {f"{key[0]}/{_name(key)}": f"Service {key[0]}/{key[1]}" for key in _waypoints(workload, services)}
    if not found:
        return workload
    return replace(
        workload,
        authorization_policies=(*workload.authorization_policies, *sorted(found)),
        policy_sources=workload.policy_sources | found,
    )


def _name(waypoint: Key) -> str:
    return f"{_PREFIX}{waypoint[0]}_{waypoint[1]}"


def _waypoints(workload: Workload, services: Mapping[str, Service]) -> Iterator[Key]:
    for one in _hops(workload, services):
        if isinstance(one.destination, NamespacedHostname) and str(one.destination) not in workload.services:
            yield one.destination.namespace, one.destination.hostname.partition(".")[0]


def _hops(workload: Workload, services: Mapping[str, Service]) -> Iterator[GatewayAddress]:
    known = [services[key] for key in workload.services if key in services]
    yield from filter(None, (workload.waypoint, *(service.waypoint for service in known)))
    for service in known:
        yield from (share.destination for share in service.weighted_waypoints)
