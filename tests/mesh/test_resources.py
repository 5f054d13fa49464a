"""Bytes recorded from a real istiod decode to what they mean, and back; what a ztunnel refuses is refused in its words."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.delta import Resource
from mesh.policy import Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch
from mesh.proto import authorization_pb2, workload_pb2
from mesh.resources import (
    decode_address,
    decode_all,
    decode_authorization,
    encode_policy,
    encode_service,
    encode_workload,
)
from mesh.workload import (
    ApplicationTunnel,
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)
from mesh.workload import Scope as Preference
from tests.mesh import golden

pytestmark = pytest.mark.unit


ANN = bytes.fromhex(
    "0a8c020a03616e6e1204616d62321a040af4010728013a0764656661756c74422618a0750a210a04616d6232121977702e616d62322e7376632e636c7573"
    "7465722e6c6f63616c4a026e315203616e6e5a066c617465737460026a03616e6e82012d616d62322f636f6e7665727465645f706565725f61757468656e"
    "7469636174696f6e5f706f72746c6576656c3292010a4b756265726e65746573a201184b756265726e657465732f2f506f642f616d62322f616e6eb20129"
    "0a1e616d62322f73322e616d62322e7376632e636c75737465722e6c6f63616c12070a05085010903fb201290a1e616d62322f73332e616d62322e737663"
    "2e636c75737465722e6c6f63616c12070a05085010903f"
)
TUN = bytes.fromhex(
    "0a600a0374756e1205706c61696e1a040af4010628013a0764656661756c744a026e31520374756e5a066c617465737460026a0374756e700192010a4b75"
    "6265726e65746573a201194b756265726e657465732f2f506f642f706c61696e2f74756e"
)
MANUAL = bytes.fromhex(
    "0a9a010a086d616e75616c2d311203616d621a04c000023888010192010a4b756265726e65746573a201414b756265726e657465732f646973636f766572"
    "792e6b38732e696f2f456e64706f696e74536c6963652f616d622f6d616e75616c2d312f3139322e302e322e3536b2012b0a20616d622f6d616e75616c2e"
    "616d622e7376632e636c75737465722e6c6f63616c12070a05085010903fc80101"
)
S3 = bytes.fromhex(
    "12600a0273331204616d62321a1973332e616d62322e7376632e636c75737465722e6c6f63616c220612040a604a7f2a05085010903f3a2618a0750a210a"
    "04616d6232121977702e616d62322e7376632e636c75737465722e6c6f63616c48015801"
)
SELECTED = bytes.fromhex(
    "12440a05736573656c1203616d621a0f73656c2e6578616d706c652e636f6d22061204f0f0000322121210200100020000000000000000000000032a0708"
    "5010903f18015801"
)
NONE = bytes.fromhex(
    "12390a0673656e6f6e651203616d621a106e6f6e652e6578616d706c652e636f6d22081204c000028018192a060850105018014204100318015801"
)
MESH_DENY = bytes.fromhex("0a096d6573682d64656e79120c697374696f2d73797374656d20012a0c0a0a12080a060a046576696c")
STATIC_STRICT = bytes.fromhex(
    "0a1d697374696f5f636f6e7665727465645f7374617469635f737472696374120c697374696f2d73797374656d180220012a080a06120422022200"
)
PORT_LEVEL = bytes.fromhex(
    "0a27636f6e7665727465645f706565725f61757468656e7469636174696f6e5f706f72746c6576656c1203616d62180220012a180a061204220222000a06"
    "12045202903f0a06120452028247"
)


def test_a_captured_pod() -> None:
    assert decode_address(ANN) == golden.ANN
    # Parsed and written anew by the generated code (a message of the original orders optional parts in its own way).
    canonical = workload_pb2.Address.FromString(ANN).SerializeToString(deterministic=True)
    assert encode_workload(golden.ANN) == canonical


def test_a_pod_that_speaks_hbone_itself() -> None:
    workload = decode_address(TUN)
    assert isinstance(workload, Workload)
    assert workload.native_tunnel
    assert workload.protocol is TunnelProtocol.HBONE
    assert encode_workload(workload) == TUN


def test_an_endpoint_outside_every_pod_takes_the_defaults() -> None:
    workload = decode_address(MANUAL)
    assert workload == Workload(
        uid="Kubernetes/discovery.k8s.io/EndpointSlice/amb/manual-1/192.0.2.56",
        name="manual-1",
        namespace="amb",
        addresses=(ip_address("192.0.2.56"),),
        trust_domain="cluster.local",
        service_account="default",
        workload_type="deployment",
        healthy=False,
        services={"amb/manual.amb.svc.cluster.local": {80: 8080}},
        network_mode=NetworkMode.HOST_NETWORK,
        capacity=1,
    )
    assert decode_address(encode_workload(workload)) == workload


def test_a_service_with_a_waypoint() -> None:
    assert decode_address(S3) == golden.S3
    assert encode_service(golden.S3) == workload_pb2.Address.FromString(S3).SerializeToString(deterministic=True)


def test_a_dual_stack_service_whose_port_names_an_application_protocol() -> None:
    service = decode_address(SELECTED)
    assert isinstance(service, Service)
    assert [str(vip) for vip in service.vips] == ["/240.240.0.3", "/2001:2::3"]
    assert service.ports == {80: 8080}


def test_a_passthrough_service_with_a_cidr() -> None:
    service = decode_address(NONE)
    assert isinstance(service, Service)
    assert service.vips == (NetworkAddress("", ip_address("192.0.2.128"), 25),)
    assert (service.mode, service.allow_unhealthy) == (BalancingMode.PASSTHROUGH, True)


@pytest.mark.parametrize(
    ("value", "policy"),
    [
        (
            MESH_DENY,
            Policy(
                "istio-system",
                "mesh-deny",
                Scope.GLOBAL,
                Action.DENY,
                (((Match(namespaces=(StringMatch("exact", "evil"),)),),),),
            ),
        ),
        (
            STATIC_STRICT,
            Policy(
                "istio-system",
                "istio_converted_static_strict",
                Scope.WORKLOAD_SELECTOR,
                Action.DENY,
                (((Match(not_principals=(StringMatch("presence"),)),),),),
            ),
        ),
        (
            PORT_LEVEL,
            Policy(
                "amb",
                "converted_peer_authentication_portlevel",
                Scope.WORKLOAD_SELECTOR,
                Action.DENY,
                (
                    (
                        (Match(not_principals=(StringMatch("presence"),)),),
                        (Match(not_destination_ports=(8080,)),),
                        (Match(not_destination_ports=(9090,)),),
                    ),
                ),
            ),
        ),
    ],
    ids=["namespace", "static strict", "port level"],
)
def test_policies(value: bytes, policy: Policy) -> None:
    assert decode_authorization(policy.key, value) == policy
    assert encode_policy(policy) == value


def test_a_policy_is_known_by_its_resource_name() -> None:
    policy = decode_authorization("other/name", MESH_DENY)
    assert policy.key == "other/name"
    assert (policy.namespace, policy.name) == ("istio-system", "mesh-deny")


def workload_bytes(**fields: object) -> bytes:
    return bytes(workload_pb2.Address(workload=workload_pb2.Workload(uid="K//Pod/fz/b", **fields)).SerializeToString())


def service_bytes(**fields: object) -> bytes:
    return bytes(workload_pb2.Address(service=workload_pb2.Service(name="s", **fields)).SerializeToString())


GATEWAY = workload_pb2.GatewayAddress(hbone_mtls_port=15008)
TOO_LONG = workload_pb2.NetworkAddress(address=b"\x01\x02\x03\x04", length=33)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (workload_bytes(addresses=[b"\x01\x02\x03"]), "failed to parse address, had 3 bytes"),
        (workload_bytes(tunnel_protocol=2), "unknown enum: unsupported tunnel protocol: legacy istio mtls"),
        (workload_bytes(tunnel_protocol=9), "decode error: unknown enumeration value 9"),
        (workload_bytes(network_mode=-1), "decode error: unknown enumeration value -1"),
        (workload_bytes(status=2), "decode error: unknown enumeration value 2"),
        (
            workload_bytes(services={"noslash": workload_pb2.PortList()}),
            "failed to parse namespaced hostname: noslash",
        ),
        (workload_bytes(waypoint=GATEWAY), "nonempty gateway address is missing address"),
        (service_bytes(ip_families=4), "decode error: unknown enumeration value 4"),
        (
            service_bytes(load_balancing=workload_pb2.LoadBalancing(routing_preference=[1, 99])),
            "decode error: unknown enumeration value 99",
        ),
        (service_bytes(load_balancing=workload_pb2.LoadBalancing(routing_preference=[0])), "unknown enum: invalid target"),
        (service_bytes(addresses=[TOO_LONG]), "invalid cidr: invalid IP prefix length"),
        (b"", "unknown address type"),
    ],
)
def test_byte_to_ipaddr_refuses(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as refused:
        decode_address(value)
    assert str(refused.value) == reason


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^decode: failed to decode Protobuf message: "):
        decode_address(b"\xff")
    with pytest.raises(ValueError, match=r"^decode: failed to decode Protobuf message: "):
        decode_authorization("a/b", b"\xff")


@pytest.mark.parametrize("number", [7, -1])
def test_a_workload_of_a_type_that_is_newer_is_there_all_the_same(number: int) -> None:
    workload = decode_address(workload_bytes(workload_type=number, addresses=[b"\x0a\0\0\x05"]))
    assert isinstance(workload, Workload) and workload.workload_type == "deployment"


def test_policies_of_an_unknown_scope_or_action_are_refused() -> None:
    for bad in (authorization_pb2.Authorization(scope=9), authorization_pb2.Authorization(action=9)):
        with pytest.raises(ValueError, match=r"^decode error: unknown enumeration value 9$"):
            decode_authorization("a/b", bad.SerializeToString())


def test_an_unknown_visibility_is_public_and_an_application_protocol_is_not_read() -> None:
    ports = [workload_pb2.Port(service_port=80, target_port=8080, app_protocol=77)]
    service = decode_address(service_bytes(visibility=9, ports=ports))
    assert isinstance(service, Service)
    assert not service.namespace_only
    assert service.ports == {80: 8080}


def test_the_full_prefix_length_is_an_exact_address() -> None:
    full = workload_pb2.NetworkAddress(address=b"\x01\x02\x03\x04", length=32)
    everything = workload_pb2.NetworkAddress(address=b"\x00\x00\x00\x00", length=0)
    service = decode_address(service_bytes(addresses=[full, everything]))
    assert isinstance(service, Service)
    assert [vip.prefix for vip in service.vips] == [None, 0]


@pytest.mark.parametrize("action", [Action.ALLOW, Action.DENY])
@pytest.mark.parametrize("name", ["principals", "not_principals", "source_ips", "not_source_ips"])
def test_what_cannot_be_read_never_allows_more(action: Action, name: str) -> None:
    """A way to compare that is newer than this, and an address of no family, beside what can be read."""
    strings = [authorization_pb2.StringMatch(), authorization_pb2.StringMatch(exact="a")]
    networks = [authorization_pb2.Address(address=b"123"), authorization_pb2.Address(address=b"\n\0\0\0", length=8)]

    def read(values: list[object]) -> Match:
        match = authorization_pb2.Match(**{name: values}, destination_ports=[80])
        rule = authorization_pb2.Rule(clauses=[authorization_pb2.Clause(matches=[match])])
        wire_action = authorization_pb2.ALLOW if action is Action.ALLOW else authorization_pb2.DENY
        message = authorization_pb2.Authorization(name="b", namespace="a", action=wire_action, rules=[rule])
        return decode_authorization("a/b", message.SerializeToString()).rules[0][0][0]

    values: list[object] = [*(networks if name.endswith("ips") else strings)]
    asks_less = Match() if action is Action.ALLOW else Match(destination_ports=(80,))
    assert read(values[:1]) == asks_less
    some = read(values)
    assert some == asks_less if name.startswith("not_") and action is Action.ALLOW else len(getattr(some, name)) == 1


def test_what_a_policy_cannot_express_is_dropped_in_silence() -> None:
    match = authorization_pb2.Match(
        principals=[authorization_pb2.StringMatch()],
        source_ips=[
            authorization_pb2.Address(address=b"\x01\x02", length=8),
            authorization_pb2.Address(address=b"\n\0\0\0", length=64),
        ],
        destination_ports=[65536 + 80],
    )
    clause = authorization_pb2.Clause(matches=[match])
    rules = [authorization_pb2.Rule(clauses=[clause])]
    message = authorization_pb2.Authorization(name="b", namespace="a", action=authorization_pb2.DENY, rules=rules)
    policy = decode_authorization("a/b", message.SerializeToString())
    assert policy.rules == (((Match(destination_ports=(80,)),),),)


def test_one_bad_resource_does_not_spoil_the_others() -> None:
    good, bad = Resource("g", "1", TUN), Resource("b", "2", workload_bytes(addresses=[b"123"]))
    decoded, refused = decode_all([bad, good], lambda resource: decode_address(resource.value))
    assert decoded == [decode_address(TUN)]
    assert refused == {"b": "failed to parse address, had 3 bytes"}


def test_policy_sources_travel_with_the_workload() -> None:
    workload = decode_address(TUN)
    assert isinstance(workload, Workload)
    sources = {"istio-system/istio_converted_static_strict": "PeerAuthentication demo/default", "a/b": "PeerAuthentication a/x"}
    marked = replace(workload, policy_sources=sources)
    assert decode_address(encode_workload(marked)) == marked
    shuffled = replace(workload, policy_sources=dict(reversed(sources.items())))
    assert encode_workload(shuffled) == encode_workload(marked)


names = st.text("abcdefghijklmnop-.", max_size=12)
ports = st.integers(0, 65535)
v4, v6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
addresses = v4 | v6


@st.composite
def network_addresses(draw: st.DrawFn) -> NetworkAddress:
    address = draw(addresses)
    return NetworkAddress(draw(names), address, draw(st.none() | st.integers(0, address.max_prefixlen - 1)))


@st.composite
def networks(draw: st.DrawFn) -> object:
    address = draw(addresses)
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


gateways = st.builds(GatewayAddress, st.builds(NamespacedHostname, names, names) | network_addresses(), ports)
workloads = st.builds(
    Workload,
    uid=names,
    name=names,
    namespace=names,
    addresses=st.lists(addresses, max_size=3).map(tuple),
    network=names,
    protocol=st.sampled_from(TunnelProtocol),
    trust_domain=names.filter(bool),
    service_account=names.filter(bool),
    waypoint=st.none() | gateways,
    network_gateway=st.none() | gateways,
    node=names,
    canonical_name=names,
    canonical_revision=names,
    workload_type=st.sampled_from(("deployment", "cronjob", "pod", "job")),
    workload_name=names,
    native_tunnel=st.booleans(),
    authorization_policies=st.lists(names, max_size=3).map(tuple),
    healthy=st.booleans(),
    cluster_id=names.filter(bool),
    hostname=names,
    services=st.dictionaries(names.map(lambda name: f"ns/{name}"), st.dictionaries(ports, ports, max_size=3), max_size=3),
    application_tunnel=st.none() | st.builds(ApplicationTunnel, st.booleans(), ports),
    locality=st.builds(Locality, names, names, names),
    network_mode=st.sampled_from(NetworkMode),
    capacity=st.integers(0, 2**32 - 1),
    policy_sources=st.dictionaries(names, names, max_size=2),
)
services = st.builds(
    Service,
    name=names,
    namespace=names,
    hostname=names,
    vips=st.lists(network_addresses(), max_size=3).map(tuple),
    ports=st.dictionaries(ports, ports, max_size=3),
    subject_alt_names=st.lists(names, max_size=2).map(tuple),
    waypoint=st.none() | gateways,
    weighted_waypoints=st.lists(st.builds(WeightedWaypoint, gateways, st.integers(0, 2**32 - 1)), max_size=2).map(tuple),
    preferences=st.lists(st.sampled_from(Preference), max_size=4).map(tuple),
    mode=st.sampled_from(BalancingMode),
    allow_unhealthy=st.booleans(),
    ip_families=st.sampled_from(IPFamilies),
    canonical=st.booleans(),
    namespace_only=st.booleans(),
    shown_to=st.lists(names, max_size=2).map(tuple),
    by_client_address=st.booleans(),
)
strings = st.lists(st.builds(StringMatch, st.sampled_from(("exact", "prefix", "suffix")), names), max_size=2).map(
    tuple
) | st.just((StringMatch("presence"),))
cidrs = st.lists(networks(), max_size=2).map(tuple)
port_lists = st.lists(ports, max_size=2).map(tuple)
accounts = st.lists(st.builds(ServiceAccountMatch, names, names), max_size=2).map(tuple)
matches = st.builds(
    Match, strings, strings, strings, strings, cidrs, cidrs, cidrs, cidrs, port_lists, port_lists, accounts, accounts
)
policies = st.builds(
    Policy,
    names.filter(bool),
    names.filter(bool),
    st.sampled_from(Scope),
    st.sampled_from(Action),
    st.lists(st.lists(st.lists(matches, max_size=2).map(tuple), max_size=2).map(tuple), max_size=2).map(tuple),
    st.booleans(),
)


@given(workloads)
def test_workloads_round_trip(workload: Workload) -> None:
    assert decode_address(encode_workload(workload)) == workload


@given(services)
def test_services_round_trip(service: Service) -> None:
    assert decode_address(encode_service(service)) == service


@given(policies)
def test_policies_round_trip(policy: Policy) -> None:
    assert decode_authorization(policy.key, encode_policy(policy)) == policy


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(value: bytes) -> None:
    for decode in (decode_address, lambda given: decode_authorization("a/b", given)):
        try:
            decode(value)
        except ValueError as refused:
            assert str(refused)


def test_a_large_mesh_holds_what_its_workloads_have_in_common_once() -> None:
    first = Workload(
        uid="Kubernetes//Pod/shop/one",
        name="one",
        namespace="shop",
        canonical_name="web",
        authorization_policies=("shop/" + "allow-web", "shop/" + "deny-all"),
        services={"shop/web.shop.svc.cluster.local": {80: 8080}, "shop/all.shop.svc.cluster.local": {80: 8080}},
    )
    second = replace(first, uid="Kubernetes//Pod/shop/two", name="two")
    one, two = (decode_address(encode_workload(workload)) for workload in (first, second))
    assert (one, two) == (first, second)
    assert isinstance(one, Workload) and isinstance(two, Workload)
    assert one.services is two.services and one.authorization_policies is two.authorization_policies
    assert one.namespace is two.namespace and one.canonical_name is two.canonical_name
