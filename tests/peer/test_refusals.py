"""A control plane that sends broken and odd resources: Istio's ztunnel refuses what weft's refuses, in the same words."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.proto.authorization_pb2 import Address as Range
from mesh.proto.authorization_pb2 import Authorization, Clause, Match, Rule, StringMatch
from mesh.proto.workload_pb2 import (
    Address,
    ApplicationTunnel,
    GatewayAddress,
    LoadBalancing,
    NetworkAddress,
    Port,
    PortList,
    Service,
    WeightedWaypoint,
    Workload,
)
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, decode_address, decode_authorization
from tests.peer.standalone import standalone

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

PORT = 15012
METHOD = "DeltaAggregatedResources"
PROTOBUFS = "failed to decode Protobuf message: "
"""What follows are the words of a library."""
IP, SHORT = b"\x0a\x00\x00\x05", b"abc"


def workload(**fields: Any) -> bytes:
    return bytes(Address(workload=Workload(**{"uid": "K//Pod/shop/w", "addresses": [IP]} | fields)).SerializeToString())


def service(**fields: Any) -> bytes:
    return bytes(Address(service=Service(name="s", namespace="shop", hostname="s.shop", **fields)).SerializeToString())


def policy(**fields: Any) -> bytes:
    return bytes(Authorization(name="p", namespace="shop", **fields).SerializeToString())


def matching(**fields: Any) -> bytes:
    return policy(rules=[Rule(clauses=[Clause(matches=[Match(**fields)])])])


NOWHERE, BROKEN = GatewayAddress(), GatewayAddress(address=NetworkAddress(address=SHORT))
ADDRESSES = [
    workload(), workload(addresses=[]), workload(addresses=[SHORT]), workload(addresses=[IP, b""]), workload(tunnel_protocol=2),
    workload(tunnel_protocol=9), workload(status=9), workload(workload_type=9), workload(network_mode=9),
    workload(services={"noslash": PortList()}), workload(services={"": PortList()}), workload(services={"a/b/c": PortList()}),
    workload(services={"a/b": PortList(ports=[Port(service_port=70_000, target_port=70_000)])}),
    workload(application_tunnel=ApplicationTunnel(protocol=9)), workload(application_tunnel=ApplicationTunnel(port=70_000)),
    workload(waypoint=NOWHERE), workload(waypoint=BROKEN), workload(network_gateway=NOWHERE), workload(uid=""),
    service(), service(addresses=[NetworkAddress(address=SHORT)]), service(addresses=[NetworkAddress(network="n")]),
    *(service(addresses=[NetworkAddress(address=IP, length=length)]) for length in (0, 24, 32, 33, 300)),
    service(ports=[Port(service_port=70_000, app_protocol=77)]), service(waypoint=NOWHERE), service(waypoint=BROKEN),
    *(service(load_balancing=LoadBalancing(routing_preference=[scope])) for scope in (0, 6, 9)),
    service(load_balancing=LoadBalancing(mode=9)), service(load_balancing=LoadBalancing(health_policy=9)),
    service(ip_families=9), service(visibility=9), service(weighted_waypoints=[WeightedWaypoint(weight=1)]),
    service(weighted_waypoints=[WeightedWaypoint(destination=BROKEN)]), b"", b"\xff\xff", b"\x0a\x20abc",
]  # fmt: skip
POLICIES = [
    policy(), policy(scope=9), policy(action=9), policy(dry_run=True), b"", b"\xff\xff", matching(),
    matching(source_ips=[Range(address=SHORT, length=8)]), matching(source_ips=[Range(address=IP, length=99)]),
    matching(namespaces=[StringMatch()]), matching(destination_ports=[70_000]),
]  # fmt: skip
CASES = [(ADDRESS_TYPE, value) for value in ADDRESSES] + [(AUTHORIZATION_TYPE, value) for value in POLICIES]


def ours(number: int) -> str:
    """What weft says to a resource; empty: nothing against it."""
    kind, value = CASES[number]
    try:
        decode_address(value) if kind == ADDRESS_TYPE else decode_authorization(f"shop/{number}", value)
    except ValueError as error:
        return f"shop/{number}: {error}"
    return ""


def serve(
    requests: Iterator[DeltaDiscoveryRequest], said: Queue[str], over: threading.Event
) -> Iterator[DeltaDiscoveryResponse]:
    """Send one resource after the other; what is said to each goes into a queue."""
    for _ in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
        next(requests)
    for number, (kind, value) in enumerate(CASES):
        resource = Resource(name=f"shop/{number}", version="v", resource=AnyMessage(type_url=kind, value=value))
        yield DeltaDiscoveryResponse(type_url=kind, nonce=str(number), resources=[resource])
        answer = next(requests)
        assert answer.response_nonce == str(number)
        said.put(answer.error_detail.message)
    over.wait()


def alike(text: str) -> str:
    before, found, _ = text.partition(PROTOBUFS)
    return before + found


def test_what_one_refuses_the_other_refuses_in_the_same_words(ztunnel: str, tmp_path: Path, authority: Any) -> None:
    said: Queue[str] = Queue()
    over = threading.Event()
    (tmp_path / "root.pem").write_bytes(authority.root_pem)
    handler = grpc.stream_stream_rpc_method_handler(
        lambda requests, _: serve(requests, said, over),
        DeltaDiscoveryRequest.FromString,
        DeltaDiscoveryResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(4))
    service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {METHOD: handler}),))
    told = {"XDS_ADDRESS": f"https://127.0.0.1:{PORT}", "XDS_ROOT_CA": str(tmp_path / "root.pem")}
    with standalone(ztunnel, "{}", tmp_path, **told) as proxy:
        with proxy.inside():
            server.add_secure_port(f"127.0.0.1:{PORT}", grpc.ssl_server_credentials([authority.server("127.0.0.1")]))
        server.start()
        try:
            theirs = [said.get(timeout=30) for _ in CASES]
        finally:
            over.set()
            server.stop(None)
    assert [alike(one) for one in theirs] == [alike(ours(number)) for number in range(len(CASES))]
    assert 20 < sum(map(bool, theirs)) < len(CASES) - 20
