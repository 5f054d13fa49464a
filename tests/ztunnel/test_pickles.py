"""What travels in frames arrives as it was, and what was one object is one object."""

import pickle
from ipaddress import ip_address, ip_network

import pytest

from mesh.identity import Identity
from mesh.policy import Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch
from mesh.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Service,
    WeightedWaypoint,
    Workload,
)
from ztunnel.channel import UpdateInventory, UpdatePolicies
from ztunnel.framing import FrameReader, pack

pytestmark = pytest.mark.unit

SIX = ip_address("fd00::1")
GATEWAY = GatewayAddress(NetworkAddress("net", SIX), 15008)
WAYPOINT = GatewayAddress(NamespacedHostname("ns", "waypoint.ns"), 15008)
WORKLOAD = Workload(
    "uid",
    "name",
    "ns",
    (ip_address("10.0.0.1"), SIX),
    waypoint=WAYPOINT,
    network_gateway=GATEWAY,
    services={"ns/web": {80: 8080}},
    application_tunnel=ApplicationTunnel(True, 1),
    locality=Locality("r", "z"),
    network_mode=NetworkMode.HOST_NETWORK,
    policy_sources={"ns/p": "PeerAuthentication ns/p"},
)
SERVICE = Service("s", "ns", "s.ns", (NetworkAddress("", SIX, 64),), weighted_waypoints=(WeightedWaypoint(WAYPOINT, 3),))
MATCH = Match(
    principals=(StringMatch("presence"), StringMatch("prefix", "a/")),
    source_ips=(ip_network("10.0.0.0/8"),),
    not_destination_ips=(ip_network("fd00::/8"),),
    destination_ports=(80,),
    service_accounts=(ServiceAccountMatch("ns", "sa"),),
)


def sent(message: object) -> object:
    ((arrived, _),) = FrameReader().feed(pack(message))
    return arrived


def test_a_mesh_arrives_as_it_was() -> None:
    inventory = UpdateInventory([WORKLOAD, SERVICE], ["gone"])
    assert sent(inventory) == inventory
    policies = [Policy("ns", name, Scope.GLOBAL, Action.DENY, (((MATCH,),),), True, "its/name") for name in "ab"]
    arrived = sent(UpdatePolicies(policies, []))
    assert arrived == UpdatePolicies(policies, [])


def test_what_many_have_in_common_arrives_once() -> None:
    rules = (((MATCH,),),)
    arrived = sent(UpdatePolicies([Policy("ns", name, Scope.GLOBAL, Action.DENY, rules) for name in "ab"], []))
    assert isinstance(arrived, UpdatePolicies)
    one, other = arrived.upserts
    assert one.rules is other.rules


def test_identities_and_addresses_are_their_own_kind() -> None:
    identity = pickle.loads(pickle.dumps(Identity("td", "ns", "sa")))
    assert isinstance(identity, Identity) and identity == Identity("td", "ns", "sa")
    assert sent(WORKLOAD) == WORKLOAD
