"""What an inbound request comes to, and for whom the same may be said again without another look."""

import socket
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from mesh.identity import Identity
from mesh.workload import Address, Workload
from ztunnel.baggage import Described, Descriptions
from ztunnel.gate import Admitted
from ztunnel.hbone import Authority, ConnectRequest, response_fields
from ztunnel.inbound import Application, Errand, InboundRequest, application_at, errand_of
from ztunnel.ledger import DRAINED
from ztunnel.pod import Pod
from ztunnel.proxy_header import proxy_header

pytestmark = pytest.mark.unit

CLIENT, LOCAL, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.3")
CLIENT6, LOCAL6 = ip_address("fd00::1"), ip_address("fd00::2")
ONE, TWO = Identity("cluster.local", "shop", "one"), Identity("cluster.local", "shop", "two")
SERVED = Workload("c//Pod/shop/server", "server", "shop", addresses=(LOCAL,))
KNOWN = Workload("c//Pod/shop/client", "client", "shop", addresses=(CLIENT,))
SAID = ConnectRequest(Authority(LOCAL, 8080), "", b"service.name=buyer,k8s.cluster.name=far")


def pod_of(**differences: object) -> Any:
    """As far as an errand looks at it."""
    config = SimpleNamespace(network="net", localhost_app_tunnel=True, enhanced_baggage=True)
    node = SimpleNamespace(
        generation=7,
        unfinished=False,
        demands=None,
        config=config,
        descriptions=Descriptions(),
        source_at=lambda address: KNOWN if address == CLIENT else None,
    )
    for name, value in differences.items():
        setattr(config if hasattr(config, name) else node, name, value)
    return SimpleNamespace(node=node, keeps_source=True)


def errand(
    pod: Any, source: Address = CLIENT, local: Address = LOCAL, request: ConnectRequest = SAID, announced: bool = False
) -> Errand:
    admitted = Admitted(9090, None, (local, 80) if announced else None)
    return errand_of(pod, SERVED, (source, local), ONE, request, admitted)


def test_policies_are_asked_about_who_proved_what_and_where_it_is_taken() -> None:
    made = errand(pod_of())
    subject = made.subject
    assert (subject.source, subject.identity, subject.destination, subject.port) == (CLIENT, ONE, LOCAL, 9090)
    assert (made.authority, made.source, made.described) == ("10.0.0.2:8080", KNOWN.uid, None)


@pytest.mark.parametrize("said", ["web.shop.svc.cluster.local", "other.shop.svc.cluster.local", ""])
def test_a_service_is_named_where_it_is_the_one_that_the_client_named(said: str) -> None:
    """One that was guessed from the address is not."""
    hostname = "web.shop.svc.cluster.local"
    admitted = Admitted(9090, cast(Any, SimpleNamespace(hostname=hostname)), None)
    request = SAID._replace(forwarded_host=said)
    made = errand_of(pod_of(), SERVED, (CLIENT, LOCAL), ONE, request, admitted)
    assert made.named == (said if said == hostname else "")


def test_nothing_that_another_proved_or_that_came_elsewhere_is_an_errand_again() -> None:
    made = errand(pod_of())
    assert made.is_between((CLIENT, LOCAL), ONE)
    assert not made.is_between((CLIENT, LOCAL), TWO)
    assert not made.is_between((OTHER, LOCAL), ONE)
    assert not made.is_between((CLIENT, OTHER), ONE)


def test_a_request_is_looked_at_again_when_the_mesh_has_changed() -> None:
    pod = pod_of()
    made, node = errand(pod), pod.node
    assert made.is_again(node, SERVED, SAID) and made.is_again(node, SERVED, SAID._replace())
    assert not made.is_again(node, SERVED, SAID._replace(authority=Authority(OTHER, 8080)))
    assert not made.is_again(node, SERVED, SAID._replace(forwarded_host="web.shop.svc.cluster.local"))
    assert not made.is_again(node, replace(SERVED, name="successor"), SAID)
    node.generation += 1
    assert not made.is_again(node, SERVED, SAID)
    assert errand(pod).is_again(node, SERVED, SAID)
    node.demands = object()
    assert not errand(pod).is_again(node, SERVED, SAID), "what was not known may be asked for"


def test_what_was_made_out_in_the_midst_of_an_update_is_made_out_anew_after_it() -> None:
    pod = pod_of(unfinished=True)
    made = errand(pod)
    pod.node.unfinished = False
    assert not made.is_again(pod.node, SERVED, SAID)


@pytest.mark.parametrize(
    ("client", "address", "keeps", "source"),
    [
        (CLIENT, LOCAL, True, "10.0.0.1"),
        (CLIENT6, LOCAL6, True, "fd00::1"),
        (CLIENT, LOCAL, False, None),
        (LOCAL, LOCAL, True, None),
        (CLIENT6, LOCAL, True, None),
        (CLIENT, ip_address("127.0.0.1"), True, None),
        (CLIENT6, ip_address("::1"), True, None),
    ],
)
def test_an_application_sees_its_clients_own_address_where_that_can_be(
    client: Address, address: Address, keeps: bool, source: str | None
) -> None:
    pod = cast(Any, SimpleNamespace(keeps_source=keeps))
    family = 2 if address.version == 4 else 10
    assert application_at(pod, client, address, 80) == Application(family, (str(address), 80), source)


def test_what_wants_the_proxy_header_is_dialled_on_its_loopback_and_judged_by_its_address() -> None:
    for local, loopback, family in ((LOCAL, "127.0.0.1", 2), (LOCAL6, "::1", 10)):
        made = errand(pod_of(), CLIENT, local, announced=True)
        assert made.application == Application(family, (loopback, 9090), None)
        assert made.subject.destination == local
    for pod, announced in ((pod_of(localhost_app_tunnel=False), True), (pod_of(), False)):
        assert errand(pod, announced=announced).application == Application(2, ("10.0.0.2", 9090), "10.0.0.1")


@pytest.mark.parametrize(
    ("source", "network", "known"),
    [(CLIENT, None, True), (CLIENT, "NET", True), (CLIENT, "far", False), (CLIENT, "", False), (OTHER, None, False)],
)
def test_who_asks_is_told_by_its_address_unless_that_is_a_gateways(source: Address, network: str | None, known: bool) -> None:
    request = SAID._replace(network=network)
    made = errand(pod_of(), source, request=request)
    told = Described(ONE, "buyer", cluster="far")
    assert (made.source, made.described) == ((KNOWN.uid, None) if known else ("", told))
    silent = errand(pod_of(enhanced_baggage=False), source, request=request)
    assert silent.described == (None if known else Described(ONE)), "its words are not listened to"


class Tunnel(SimpleNamespace):
    """As far as a request looks at it."""

    __hash__ = object.__hash__


class Socket:
    """An application's, that takes so many bytes, or is broken."""

    def __init__(self, takes: int | OSError) -> None:
        self.takes = takes
        self.sent, self.closed = b"", False

    def send(self, data: bytes) -> int:
        if isinstance(self.takes, OSError):
            raise self.takes
        self.sent += data[: self.takes]
        return min(self.takes, len(data))

    def close(self) -> None:
        self.closed = True


class Request(NamedTuple):
    """One whose stream is there, with all that it looks at."""

    inbound: InboundRequest
    pod: Any
    tunnel: Any
    said: list[object]
    """To the client, its stream, the pod's account and the record of failures."""


def request_for(announced: bool = False) -> Request:
    said: list[object] = []
    pod = pod_of()
    failures = SimpleNamespace(refused=lambda closed, _now: said.append((closed.record.flag, closed.record.error)))
    pod.node.ledger = SimpleNamespace(next_number=lambda: 1, open={}, failures=failures)
    pod.uid, pod.closed, pod.connections = "uid-1", False, 1
    pod.count_stream, pod.baggage = said.append, lambda workload: b"a=b"
    pod.connection_left, pod.request_left = partial(Pod.connection_left, pod), partial(Pod.request_left, pod)
    reject = lambda sid, fields: said.append((sid, fields))  # noqa: E731
    tunnel = cast(Any, Tunnel(peer=ONE, http=SimpleNamespace(reject=reject), loop=SimpleNamespace(dirty={})))
    told = ("answer", "open", "attach", "drop", "abort")
    stream = SimpleNamespace(
        sid=3, sent=0, received=0, **{name: (lambda *_, name=name, **__: said.append(name)) for name in told}
    )
    request = InboundRequest(pod, ((CLIENT, 4000), (LOCAL, 15008)), tunnel, errand(pod, announced=announced))
    request.pump = request._stream = cast(Any, stream)
    pod.node.ledger.open[1] = request
    return Request(request, pod, tunnel, said)


@pytest.mark.parametrize(
    ("takes", "error"),
    [
        (1000, ""),
        (27, "the application's socket took no PROXY header"),
        (BrokenPipeError(32, "Broken pipe"), "connection failed: Broken pipe (os error 32)"),
    ],
)
def test_a_request_is_accepted_when_its_application_has_the_proxy_header(takes: int | OSError, error: str) -> None:
    request, pod, tunnel, said = request_for(announced=True)
    application = Socket(takes)
    request.connected(cast(Any, application))
    if error:
        assert said == [(3, response_fields(503)), "drop", -1, ("CONNECT", error)] and tunnel in tunnel.loop.dirty
        assert application.closed and not pod.connections and not pod.node.ledger.open
    else:
        assert said == ["answer", "open", "attach"] and not application.closed and pod.node.ledger.open
        assert application.sent == proxy_header((CLIENT, 4000), (LOCAL, 80), ONE)


def test_an_application_that_wants_no_proxy_header_is_sent_none() -> None:
    request, _, _, said = request_for()
    application = Socket(1000)
    request.connected(cast(Any, application))
    assert said == ["answer", "open", "attach"] and not application.sent and not application.closed


def test_an_application_that_is_there_after_its_pod_left_is_let_go() -> None:
    request, pod, _, said = request_for(announced=True)
    pod.closed = True
    application = Socket(1000)
    request.connected(cast(Any, application))
    assert said == ["abort", -1, ("-", DRAINED)] and application.closed and not application.sent


def test_a_request_for_which_there_is_no_socket_is_answered_503() -> None:
    request, pod, tunnel, said = request_for()

    def make_socket(family: int, source: str | None) -> socket.socket:
        assert (family, source) == (socket.AF_INET, str(CLIENT))
        raise OSError(24, "Too many open files")

    pod.netns = SimpleNamespace(make_socket=make_socket)
    request.dial(request._errand.application)
    failure = ("CONNECT", "cannot make a socket: [Errno 24] Too many open files")
    assert said == [(3, response_fields(503)), "drop", -1, failure] and tunnel in tunnel.loop.dirty
