"""A pod's DNS over real sockets: what is answered, what is forwarded to a real nameserver, and what a hostile pod can reach."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest

from mesh.workload import NetworkAddress, Service, Workload
from tests.descriptors import open_descriptors
from tests.ports import unused_port
from tests.ztunnel.nameserver import Nameserver, code, nameserver, silence, zone
from ztunnel import dns_client, dns_service, dns_sockets
from ztunnel.allowance import Allowance
from ztunnel.channel import AddPod, Configure, DNSCounts, FromWorker
from ztunnel.dns_client import DNSClient
from ztunnel.dns_service import DNSService
from ztunnel.dns_sockets import open_dns_sockets
from ztunnel.dns_upstream import MAX_EXCHANGES
from ztunnel.loop import Loop
from ztunnel.node import Node
from ztunnel.pod import Pod
from ztunnel.tuning import Tuning

CLIENT = Workload(
    "c//Pod/shop/client", "client", "shop", service_account="client", canonical_name="canon", canonical_revision="rev7"
)
HEADLESS = "shop/db.shop.svc.cluster.local"
WEB = Service(
    "web",
    "shop",
    "web.shop.svc.cluster.local",
    (NetworkAddress("", ip_address("10.96.0.1")), NetworkAddress("", ip_address("10.96.0.2"))),
)
LARGE = Service("large", "shop", "large.com", tuple(NetworkAddress("", ip_address(0x0A000000 + one)) for one in range(256)))
DB = Service("db", "shop", "db.shop.svc.cluster.local")
DB_0 = Workload("c//Pod/shop/db-0", "db-0", "shop", (ip_address("10.1.0.7"),), services={HEADLESS: {}})
ZONE = {
    "www.example.": ["60 A 192.0.2.1"],
    "big.example.": [f"60 A 192.0.2.{number}" for number in range(1, 200)],
    "text.example.": ["60 TXT hello"],
    "lost.example.": ["60 CNAME nowhere.example."],
}
LOOPBACKS = [("127.0.0.1", 0), ("::1", 0)]


class Bench:
    """A worker's node with one pod, whose DNS listens on this machine's loopback."""

    def __init__(self, tmp_path: Path, nameserver_port: int = 1, patience_s: float = 100.0) -> None:
        """`patience_s`: for a nameserver and for the control plane; short for those that say nothing, and for no others."""
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.write_text("nameserver 127.0.0.1\n")
        self.told: list[FromWorker] = []
        self.loop = Loop()
        configuration = Configure(
            "n1", "", "c", "cluster.local", 0, tuning=Tuning(workload_timeout_s=patience_s), resolv_conf=str(resolv_conf)
        )
        self.node = Node(self.loop, configuration, self.told.append)
        self.node.dns_upstream.port = nameserver_port
        self.node.dns_upstream.deadlines.timeout_s = patience_s
        # Else a client is closed that waits for a test which has too little time.
        self.usual_idle_s, self.node.dns_idle.timeout_s = self.node.dns_idle.timeout_s, 1000.0
        self.node.inventory.apply([CLIENT, WEB, LARGE, DB, DB_0], [])
        self.pod = Pod(self.node, AddPod("u1", "shop", "client", "client"), os.dup(self.node.home_fd))
        sockets, trouble = open_dns_sockets(LOOPBACKS, 0x539)
        assert not trouble and len(sockets) == 4
        self.places = [sock.getsockname()[:2] for sock in sockets]
        self.service = DNSService(self.pod, [os.dup(sock.fileno()) for sock in sockets])
        self.pod.dns = self.service
        for sock in sockets:
            sock.close()
        self.opened: list[socket.socket] = []

    def run(self, done: Callable[[], object]) -> None:
        until = time.monotonic() + 60
        while not done():
            assert time.monotonic() < until, "nothing happened"
            self.loop.turn(0.01)
            self.node.tick()

    def udp(self, family: int = socket.AF_INET) -> socket.socket:
        return self._socket(family, socket.SOCK_DGRAM)

    def tcp(self, family: int = socket.AF_INET) -> socket.socket:
        return self._socket(family, socket.SOCK_STREAM)

    def _socket(self, family: int, kind: int) -> socket.socket:
        sock = socket.socket(family, kind)
        place = (0 if kind == socket.SOCK_DGRAM else 1) + (2 if family == socket.AF_INET6 else 0)
        sock.connect(self.places[place])
        sock.setblocking(False)
        self.opened.append(sock)
        return sock

    def hear(self, sock: socket.socket) -> dns.message.Message:
        """The next answer on a socket."""
        got = bytearray()

        def whole() -> bool:
            try:
                got.extend(sock.recv(65536))
            except BlockingIOError:
                return False
            if sock.type == socket.SOCK_DGRAM:
                return True
            return len(got) >= 2 and len(got) >= 2 + int.from_bytes(got[:2], "big")

        self.run(whole)
        return dns.message.from_wire(bytes(got[2:] if sock.type == socket.SOCK_STREAM else got))

    def hear_ids(self, sock: socket.socket, count: int) -> list[int]:
        """Those of the next answers on a stream."""
        got, ids = bytearray(), []

        def heard() -> bool:
            with suppress(BlockingIOError):
                got.extend(sock.recv(65536))
            while len(got) >= 2 and len(got) >= (end := 2 + int.from_bytes(got[:2], "big")):
                ids.append(dns.message.from_wire(bytes(got[2:end])).id)
                del got[:end]
            return len(ids) >= count

        self.run(heard)
        return ids

    def ask(self, name: str, kind: str = "A", over: str = "udp", **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)
        sock = self.udp() if over == "udp" else self.tcp()
        sock.send(framed(query.to_wire()) if over == "tcp" else query.to_wire())
        answer = self.hear(sock)
        assert answer.id == query.id and answer.question == query.question
        return answer

    def counts(self) -> DNSCounts:
        taken = self.node.dns_counts.take()
        assert taken is not None
        return taken

    def close(self) -> None:
        self.pod.close()
        for sock in self.opened:
            sock.close()
        os.close(self.node.home_fd)


def framed(wire: bytes) -> bytes:
    return struct.pack("!H", len(wire)) + wire


def texts(answer: dns.message.Message) -> list[str]:
    return sorted(line for rrset in answer.answer for line in rrset.to_text().splitlines())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[Nameserver]:
    with nameserver(zone(ZONE, max_udp_bytes=1232)) as made:
        yield made


@pytest.fixture
def forwarding(tmp_path: Path, server: Nameserver) -> Iterator[Bench]:
    made = Bench(tmp_path, server.port)
    yield made
    made.close()


@pytest.mark.unit
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_service_is_answered_with_authority(bench: Bench, over: str) -> None:
    answer = bench.ask("web.shop.", over=over)
    assert texts(answer) == ["web.shop. 30 IN A 10.96.0.1", "web.shop. 30 IN A 10.96.0.2"]
    assert answer.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    alias = bench.ask("web.shop.shop.svc.cluster.local.", over=over)
    assert "web.shop.shop.svc.cluster.local. 30 IN CNAME web.shop." in texts(alias)
    assert texts(bench.ask("db-0.db.", over=over)) == ["db-0.db. 30 IN A 10.1.0.7"]
    nothing = bench.ask("web.", "AAAA", over=over)
    assert not nothing.answer and nothing.rcode() == dns.rcode.NOERROR and nothing.flags & dns.flags.AA


@pytest.mark.unit
def test_both_loopbacks_are_served(bench: Bench) -> None:
    for sock in (bench.udp(socket.AF_INET6), bench.tcp(socket.AF_INET6)):
        wire = dns.message.make_query("web.shop.", "A").to_wire()
        sock.send(framed(wire) if sock.type == socket.SOCK_STREAM else wire)
        assert len(texts(bench.hear(sock))) == 2


@pytest.mark.unit
def test_addresses_are_shuffled(bench: Bench) -> None:
    assert len({bench.ask("web.").answer[0][0].to_text() for _ in range(40)}) == 2


@pytest.mark.unit
def test_large_response(bench: Bench) -> None:
    assert len(bench.ask("large.com.", over="tcp").answer[0]) == 256
    cut = bench.ask("large.com.", use_edns=0, payload=1232)
    assert len(cut.answer[0]) == 74 and cut.flags & dns.flags.TC and cut.payload == 1232
    small = bench.ask("large.com.", use_edns=False)
    assert len(small.answer[0]) == 30 and small.flags & dns.flags.TC and small.edns == -1


@pytest.mark.unit
def test_what_is_no_question_gets_its_code(bench: Bench) -> None:
    sock = bench.udp()
    sock.send(b"short")
    sock.send(dns.message.make_response(dns.message.make_query("web.", "A")).to_wire())
    for wire, expected in [
        (b"\0\1\x28\0" + b"\0" * 8, dns.rcode.NOTIMP),
        (os.urandom(2) + b"\1\0" + b"\xff" * 40, dns.rcode.FORMERR),
    ]:
        sock.send(wire)
        assert bench.hear(sock).rcode() == expected


@pytest.mark.unit
def test_a_question_before_the_workload_is_known_waits_and_then_fails(bench: Bench) -> None:
    bench.node.inventory.apply([], [CLIENT.uid])
    bench.node.inventory_changed()
    sock = bench.udp()
    sock.send(dns.message.make_query("web.", "A").to_wire())
    bench.run(lambda: len(bench.node.workload_waits) == 1)
    bench.node.inventory.apply([CLIENT], [])
    bench.node.inventory_changed()
    assert len(texts(bench.hear(sock))) == 2
    bench.node.workload_waits.timeout_s = 0.2
    bench.node.inventory.apply([], [CLIENT.uid])
    bench.node.inventory_changed()
    assert bench.ask("web.").rcode() == dns.rcode.SERVFAIL
    assert bench.counts().queries["a", "udp", "", ""].requests == 1


def forget_the_client(bench: Bench) -> None:
    bench.node.inventory.apply([], [CLIENT.uid])
    bench.node.inventory_changed()


def tell_of_the_client(bench: Bench) -> None:
    bench.node.inventory.apply([CLIENT], [])
    bench.node.inventory_changed()


@pytest.mark.unit
def test_questions_before_the_workload_is_known_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_service, "MAX_ASKING", 2)
    forget_the_client(bench)
    first, second, third = bench.udp(), bench.udp(), bench.udp()
    for sock in (first, second, third):
        sock.send(dns.message.make_query("web.", "A").to_wire())
    assert bench.hear(third).rcode() == dns.rcode.SERVFAIL
    tell_of_the_client(bench)
    assert len(texts(bench.hear(first))) == len(texts(bench.hear(second))) == 2


@pytest.mark.unit
def test_what_pods_ask_leaves_room_for_what_connections_must_have_resolved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = bench.node.dns_upstream
    most = MAX_EXCHANGES * 3 // 4
    monkeypatch.setattr(upstream, "under_way", dict.fromkeys(range(most)))
    asked: list[object] = []
    monkeypatch.setattr(upstream, "ask", lambda *_: asked.append(1))
    assert bench.ask("www.example.").rcode() == dns.rcode.SERVFAIL and not asked
    assert bench.node.gauges()["refused_lookups"] == 1
    counted = bench.counts().queries["a", "udp", "canon", "rev7"]
    assert (counted.requests, counted.upstream_requests, counted.upstream_failures) == (1, 1, 1)
    upstream.under_way.popitem()
    assert bench.ask("www.example.").rcode() == dns.rcode.SERVFAIL and asked, "the nameservers' own bound, which is later"


@pytest.mark.unit
@pytest.mark.parametrize("comes", [True, False])
def test_draining_waits_for_word_of_the_workload(bench: Bench, comes: bool) -> None:
    forget_the_client(bench)
    bench.node.workload_waits.timeout_s = 1e9 if comes else 0.0
    sock = bench.udp()
    sock.send(dns.message.make_query("web.", "A").to_wire())
    bench.loop.turn(10.0)
    bench.pod.drain()
    assert len(bench.node.workload_waits) == 1
    if comes:
        tell_of_the_client(bench)
    answer = bench.hear(sock)
    assert (answer.rcode(), len(texts(answer))) == ((dns.rcode.NOERROR, 2) if comes else (dns.rcode.SERVFAIL, 0))
    with pytest.raises(ConnectionRefusedError):
        while True:
            sock.send(dns.message.make_query("web.", "A").to_wire())


@pytest.mark.unit
def test_who_waits_for_word_of_the_workload_ends_with_the_pod(bench: Bench) -> None:
    forget_the_client(bench)
    bench.udp().send(dns.message.make_query("web.", "A").to_wire())
    bench.run(lambda: len(bench.node.workload_waits) == 1)
    bench.service.close()
    assert not bench.node.workload_waits and not bench.node._waiting


@pytest.mark.unit
def test_descriptors_one_of_which_cannot_listen_are_all_closed(bench: Bench) -> None:
    before = open_descriptors()
    sockets, _ = open_dns_sockets(LOOPBACKS, 0x539)
    deaf = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    fds = [sockets[0].detach(), sockets[1].detach(), deaf.detach(), sockets[2].detach(), sockets[3].detach()]
    with pytest.raises(OSError, match="not a listening socket"):
        DNSService(bench.pod, fds)
    assert open_descriptors() <= before


@pytest.mark.unit
def test_a_service_of_another_namespace_is_hidden_where_it_asks_for_that(bench: Bench) -> None:
    bench.node.inventory.apply(
        [replace(WEB, namespace="other", hostname="web.other.svc.cluster.local", namespace_only=True)], []
    )
    assert not bench.ask("web.other.").flags & dns.flags.AA


@pytest.mark.unit
def test_many_questions_on_one_connection_and_a_half_close(bench: Bench) -> None:
    sock = bench.tcp()
    wires = [dns.message.make_query("web.", "A", id=number).to_wire() for number in range(300)]
    sock.send(b"".join(map(framed, wires)))
    sock.shutdown(socket.SHUT_WR)
    assert bench.hear_ids(sock, 300) == list(range(300))
    bench.run(lambda: _ended(sock))
    assert not bench.node.dns_idle


def client_of(bench: Bench) -> DNSClient:
    bench.run(lambda: bench.service._clients)
    [client] = bench.service._clients
    return client


@pytest.mark.unit
def test_who_said_its_last_still_hears_all_that_it_is_owed(bench: Bench) -> None:
    forget_the_client(bench)
    sock = bench.tcp()
    sock.send(b"".join(framed(dns.message.make_query("web.", "A", id=number).to_wire()) for number in range(3)))
    sock.shutdown(socket.SHUT_WR)
    client = client_of(bench)
    bench.run(lambda: client._ended)
    tell_of_the_client(bench)
    assert bench.hear_ids(sock, 3) == [0, 1, 2]
    bench.run(lambda: _ended(sock))


@pytest.mark.unit
def test_who_reads_late_hears_the_rest_as_it_makes_room(bench: Bench) -> None:
    sock = bench.tcp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client = client_of(bench)
    client._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.send(b"".join(framed(dns.message.make_query("large.com.", "A", id=number).to_wire()) for number in range(20)))
    bench.run(lambda: client._out and not client._in)
    assert bench.hear_ids(sock, 20) == list(range(20))


@pytest.mark.unit
def test_who_reads_is_not_silent_however_slowly(bench: Bench) -> None:
    """It was cut off in the middle of what it was owed, 5 s after its last question."""
    sock, asked = bench.tcp(), 0
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client = client_of(bench)
    client._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.send(b"".join(framed(dns.message.make_query("large.com.", "A", id=number).to_wire()) for number in range(20)))

    def all_are_answered() -> bool:
        nonlocal asked
        taken = bench.node.dns_counts.take()
        asked += sum(one.requests for one in taken.queries.values()) if taken else 0
        return asked == 20

    def reads() -> bool:
        with suppress(BlockingIOError):
            sock.recv(4096)
        return len(client._out) < left

    bench.run(all_are_answered)
    silent_until, left = bench.loop.now + bench.node.dns_idle.timeout_s, len(client._out)
    bench.run(reads)
    bench.node.dns_idle.expire(silent_until)
    assert len(bench.node.dns_idle) == 1


@pytest.mark.unit
def test_who_was_answered_is_not_silent_however_late_that_was(bench: Bench) -> None:
    forget_the_client(bench)
    sock = bench.tcp()
    sock.send(framed(dns.message.make_query("web.", "A").to_wire()))
    bench.run(lambda: bench.node.workload_waits)
    nearly_s = bench.node.dns_idle.timeout_s - 1
    bench.loop.now += nearly_s
    tell_of_the_client(bench)
    bench.node.dns_idle.expire(bench.loop.now + nearly_s)
    assert bench.hear(sock).answer and not _ended(sock)


@pytest.mark.unit
def test_who_leaves_while_it_is_not_heard_is_let_go(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.service._allowance = Allowance(0, 0.0)
    assert bench.ask("web.").answer
    sock = bench.tcp()
    sock.send(framed(dns.message.make_query("web.", "A").to_wire()))
    client = client_of(bench)
    bench.run(lambda: client._paused)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    bench.run(lambda: not bench.node.dns_idle and not client._paused)
    assert not bench.service._clients and not caplog.records


@pytest.mark.unit
def test_who_said_its_last_and_is_owed_no_answer_is_not_waited_for(bench: Bench) -> None:
    """Messages that are answers themselves have none."""
    sock = bench.tcp()
    wire = dns.message.make_response(dns.message.make_query("web.", "A")).to_wire()
    sock.send(framed(wire) * 3)
    sock.shutdown(socket.SHUT_WR)

    def ended() -> bool:
        try:
            return sock.recv(1) == b""
        except BlockingIOError:
            return False

    bench.run(ended)
    assert not bench.node.dns_idle


@pytest.mark.unit
def test_a_connection_that_says_nothing_is_closed(bench: Bench) -> None:
    bench.node.dns_idle.timeout_s = bench.usual_idle_s
    sock = bench.tcp()
    sock.send(b"\0")
    bench.run(lambda: len(bench.node.dns_idle) == 1)
    bench.node.dns_idle.expire(bench.loop.now + 4.9)
    assert len(bench.node.dns_idle) == 1
    bench.node.dns_idle.expire(bench.loop.now + 5.1)
    assert _ended(sock)


@pytest.mark.unit
def test_who_asks_is_not_silent(bench: Bench) -> None:
    sock = bench.tcp()
    bench.run(lambda: len(bench.node.dns_idle) == 1)
    opened_at = bench.loop.now
    sock.send(framed(dns.message.make_query("web.", "A").to_wire()))
    assert bench.hear(sock).answer
    assert bench.loop.now > opened_at
    assert client_of(bench)._sock.fileno() not in dict(bench.loop._epoll.poll(0)), "what is answered wakes nobody"
    bench.node.dns_idle.expire(opened_at + bench.node.dns_idle.timeout_s)
    assert len(bench.node.dns_idle) == 1
    bench.node.dns_idle.expire(bench.loop.now + bench.node.dns_idle.timeout_s)
    assert _ended(sock)


@pytest.mark.unit
def test_what_is_too_long_for_a_question_ends_its_connection_before_it_comes(bench: Bench) -> None:
    longest, too_long = bench.tcp(), bench.tcp()
    longest.send(struct.pack("!H", 4096))
    too_long.send(struct.pack("!H", 4097))
    bench.run(lambda: _ended(too_long))
    longest.send(bytes(4096) + framed(dns.message.make_query("web.", "A").to_wire()))
    assert bench.hear(longest).rcode() == dns.rcode.FORMERR and bench.hear(longest).answer


@pytest.mark.unit
def test_connections_are_bounded_the_silent_one_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_service, "MAX_CLIENTS", 3)
    first, silent, *_ = [bench.tcp() for _ in range(3)]
    bench.run(lambda: len(bench.node.dns_idle) == 3)
    first.send(framed(dns.message.make_query("web.", "A").to_wire()))
    bench.hear(first)
    bench.tcp()
    bench.run(lambda: _ended(silent))
    assert len(bench.node.dns_idle) == 3 and not _ended(first)


@pytest.mark.unit
def test_who_has_left_takes_nobodys_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_service, "MAX_CLIENTS", 3)
    first, second, third = [bench.tcp() for _ in range(3)]
    bench.run(lambda: len(bench.node.dns_idle) == 3)
    third.close()
    bench.run(lambda: len(bench.node.dns_idle) == 2)
    bench.tcp()
    bench.run(lambda: len(bench.node.dns_idle) == 3)
    assert not _ended(first) and not _ended(second)


def _ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.unit
def test_a_client_that_does_not_read_is_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_client, "_MAX_WAITING_BYTES", 8192)
    sock = bench.tcp()
    wire = framed(dns.message.make_query("large.com.", "A").to_wire())
    left = memoryview(wire * 4000)

    def closed() -> bool:
        nonlocal left
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            pass
        except OSError:
            return True
        return not bench.node.dns_idle

    bench.run(lambda: len(bench.node.dns_idle) == 1)
    bench.run(closed)
    assert bench.ask("web.").answer


@pytest.mark.unit
@pytest.mark.parametrize("noise", [b"\xff\xff", b"\0\0" * 500, b"\0\5short" * 20, Random(1).randbytes(3000)])
def test_noise_costs_its_own_connection_at_most(bench: Bench, noise: bytes) -> None:
    sock = bench.tcp()
    sock.send(noise)
    for _ in range(20):
        bench.loop.turn(0.01)
    assert bench.ask("web.", over="tcp").answer and bench.ask("web.").answer


@pytest.mark.unit
def test_reset_connections_leave_nothing(bench: Bench) -> None:
    for _ in range(20):
        sock = bench.tcp()
        sock.send(framed(dns.message.make_query("large.com.", "A").to_wire()) * 5)
        bench.loop.turn(0.01)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    bench.run(lambda: not bench.node.dns_idle)


@pytest.mark.kernel
def test_what_a_pods_dns_says_bears_the_proxys_mark() -> None:
    """The redirect would take it for an application's otherwise."""
    sockets, _ = open_dns_sockets(LOOPBACKS, 0x539)
    marks = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for sock in sockets]
    for sock in sockets:
        sock.close()
    assert marks == [0x539] * 4


@pytest.mark.unit
def test_queries_are_counted_as_istio_counts_them(bench: Bench) -> None:
    bench.ask("web.")
    bench.ask("web.")
    bench.ask("web.", "AAAA", over="tcp")
    counted = bench.counts().queries
    assert counted["a", "udp", "canon", "rev7"].requests == 2 and counted["aaaa", "tcp", "canon", "rev7"].requests == 1
    assert not counted["a", "udp", "canon", "rev7"].upstream_requests and bench.node.dns_counts.take() is None


@pytest.mark.unit
def test_draining_answers_what_has_come_and_takes_no_more(bench: Bench) -> None:
    sock = bench.udp()
    sock.send(dns.message.make_query("web.", "A").to_wire())
    bench.pod.drain()
    assert texts(dns.message.from_wire(sock.recv(4096)))
    bench.loop.turn(0)
    with pytest.raises(ConnectionRefusedError):
        while True:  # the kernel tells of a closed port with the next call
            sock.send(dns.message.make_query("web.", "A").to_wire())
    with pytest.raises(ConnectionRefusedError):
        bench.tcp()


@pytest.mark.unit
def test_a_port_that_is_taken_is_told_and_the_others_are_opened() -> None:
    port = unused_port()
    with socket.create_server(("127.0.0.1", port)):
        sockets, trouble = open_dns_sockets([("127.0.0.1", port), ("::1", port)], 0x539)
        assert trouble == f"127.0.0.1:{port}: Address already in use"
        assert [(sock.family, sock.type) for sock in sockets] == [
            (socket.AF_INET6, socket.SOCK_DGRAM),
            (socket.AF_INET6, socket.SOCK_STREAM),
        ]
        for sock in sockets:
            sock.close()


@pytest.mark.unit
@pytest.mark.parametrize("shared", [True, False])
def test_a_successor_listens_beside_its_predecessor_where_it_may(shared: bool) -> None:
    port = unused_port()
    places = [("127.0.0.1", port), ("::1", port)]
    first, nothing_wrong = open_dns_sockets(places, 0x539, shared)
    second, trouble = open_dns_sockets(places, 0x539, shared)
    taken = f"127.0.0.1:{port}: Address already in use; [::1]:{port}: Address already in use"
    assert (len(first), nothing_wrong) == (4, "")
    assert (len(second), trouble) == ((4, "") if shared else (0, taken))
    for sock in (*first, *second):
        sock.close()


@pytest.mark.unit
def test_a_port_whose_last_connection_lingers_is_listened_at_again() -> None:
    places = [("127.0.0.1", unused_port())]
    first, _ = open_dns_sockets(places, 0x539, shared=False)
    with socket.create_connection(places[0]) as client:
        first[1].accept()[0].close()
        assert client.recv(1) == b""
    for sock in first:
        sock.close()
    again, trouble = open_dns_sockets(places, 0x539, shared=False)
    assert (len(again), trouble) == (2, "")
    for sock in again:
        sock.close()


@pytest.mark.unit
@pytest.mark.parametrize(("said", "served"), [("0\n", ["::1"] * 2), ("1\n", []), (None, [])])
def test_ipv6_is_passed_over_where_the_loopback_has_none(
    said: str | None, served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_sockets, "_IPV6_OFF", str(tmp_path / "disable_ipv6"))
    if said is not None:
        (tmp_path / "disable_ipv6").write_text(said)
    sockets, trouble = open_dns_sockets([("::1", unused_port())], 0x539)
    assert ([sock.getsockname()[0] for sock in sockets], trouble) == (served, "")
    for sock in sockets:
        sock.close()


# Forwarding makes sockets as in a pod's namespace, here this one: that takes privilege.


@pytest.mark.kernel
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_forward_to_server(forwarding: Bench, server: Nameserver, over: str) -> None:
    answer = forwarding.ask("www.example.", over=over, use_edns=0, payload=1400)
    assert texts(answer) == ["www.example. 60 IN A 192.0.2.1"]
    assert not answer.flags & dns.flags.AA and answer.flags & dns.flags.RA and answer.payload == 1400
    assert forwarding.ask("fake-blahblahblah.com.", over=over).rcode() == dns.rcode.NXDOMAIN
    lost, nothing = forwarding.ask("lost.example.", over=over), forwarding.ask("text.example.", over=over)
    assert (lost.rcode(), texts(lost)) == (dns.rcode.NXDOMAIN, ["lost.example. 60 IN CNAME nowhere.example."])
    assert (nothing.rcode(), texts(nothing)) == (dns.rcode.NOERROR, [])
    assert texts(forwarding.ask("text.example.", "TXT", over=over)) == ['text.example. 60 IN TXT "hello"']
    assert forwarding.ask("web.", "NS", over=over).rcode() == dns.rcode.NXDOMAIN
    counted = forwarding.counts().queries["a", over, "canon", "rev7"]
    assert (counted.requests, counted.upstream_requests, counted.upstream_failures) == (4, 4, 3), "all but the first fail"
    assert sum(counted.durations) == 4 and counted.seconds >= 0
    assert all(how == "udp" for how, _ in server.asked) and not forwarding.node.dns_upstream.under_way


@pytest.mark.kernel
def test_an_answer_that_upstream_cuts_is_fetched_whole(forwarding: Bench, server: Nameserver) -> None:
    assert len(forwarding.ask("big.example.", over="tcp").answer[0]) == 199
    assert len(forwarding.ask("big.example.", use_edns=0, payload=8192).answer[0]) == 199
    cut = forwarding.ask("big.example.", use_edns=False)
    assert cut.flags & dns.flags.TC and len(cut.answer[0]) > 25
    assert [how for how, _ in server.asked] == ["udp", "tcp"] * 3


@pytest.mark.kernel
def test_a_nameservers_code_is_passed_on_and_silence_is_servfail(tmp_path: Path) -> None:
    for behave, expected in [(code(5), dns.rcode.REFUSED), (silence, dns.rcode.SERVFAIL)]:
        with nameserver(behave) as server:
            bench = Bench(tmp_path, server.port, 0.2 if behave is silence else 10.0)
            assert bench.ask("www.example.").rcode() == expected
            assert bench.counts().queries["a", "udp", "canon", "rev7"].upstream_failures == 1
            bench.close()


@pytest.mark.kernel
def test_questions_under_way_are_bounded_and_end_with_the_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_service, "MAX_ASKING", 5)
    with nameserver(silence) as server:
        bench = Bench(tmp_path, server.port, 60.0)
        sock = bench.udp()
        for number in range(8):
            sock.send(dns.message.make_query(f"n{number}.example.", "A").to_wire())
        assert [bench.hear(sock).rcode() for _ in range(3)] == [dns.rcode.SERVFAIL] * 3
        assert bench.node.gauges()["refused_lookups"] == 3 and bench.node.gauges()["dns_questions"] == 5
        assert bench.ask("web.").answer, "what the mesh knows needs no nameserver"
        bench.run(lambda: len(server.asked) == 5)
        bench.close()
        assert not bench.node.dns_upstream.under_way and not bench.node.dns_upstream.deadlines


@pytest.mark.kernel
def test_an_answer_after_its_client_left_goes_nowhere(forwarding: Bench) -> None:
    sock = forwarding.tcp()
    sock.send(framed(dns.message.make_query("www.example.", "A").to_wire()))
    forwarding.run(lambda: forwarding.node.dns_upstream.under_way)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    forwarding.run(lambda: not forwarding.node.dns_upstream.under_way)
    assert not forwarding.node.dns_idle and texts(forwarding.ask("www.example."))


@pytest.mark.kernel
def test_draining_waits_for_nameservers_and_loses_no_question_meanwhile(tmp_path: Path) -> None:
    with nameserver(silence) as server:
        bench = Bench(tmp_path, server.port, 0.5)
        slow, quick = bench.udp(), bench.udp()
        slow.send(dns.message.make_query("www.example.", "A").to_wire())
        bench.run(lambda: bench.node.dns_upstream.under_way)
        bench.pod.drain()
        quick.send(dns.message.make_query("web.", "A").to_wire())
        assert texts(bench.hear(quick))
        assert bench.hear(slow).rcode() == dns.rcode.SERVFAIL
        with pytest.raises(ConnectionRefusedError):
            while True:
                quick.send(dns.message.make_query("web.", "A").to_wire())
        bench.close()


@pytest.mark.unit
def test_a_flood_of_questions_has_a_small_share_of_each_turn(bench: Bench) -> None:
    floods = [bench.udp(), bench.udp(socket.AF_INET6), bench.tcp()]
    wire = dns.message.make_query("web.", "A").to_wire()
    for sock in floods:
        for _ in range(50):
            sock.send(framed(wire) if sock.type == socket.SOCK_STREAM else wire)
    turns: list[int] = []
    while sum(turns) < 150:
        bench.loop.turn(0.1)
        counts = bench.node.dns_counts.take()
        turns.append(sum(one.requests for one in counts.queries.values()) if counts else 0)
    assert max(turns) <= 2 + 256 // len(framed(wire)), "a datagram each, and what one read of a connection holds"


@pytest.mark.unit
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_a_pod_that_asks_too_often_is_not_heard_for_a_while_and_loses_nothing(bench: Bench, over: str) -> None:
    bench.service._allowance = Allowance(8, 0.0)
    sock = bench.udp() if over == "udp" else bench.tcp()
    wire = dns.message.make_query("web.", "A").to_wire()
    for _ in range(40):
        sock.send(framed(wire) if over == "tcp" else wire)
    answered = [0]

    def count() -> int:
        counts = bench.node.dns_counts.take()
        answered[0] += sum(one.requests for one in counts.queries.values()) if counts else 0
        return answered[0]

    bench.run(lambda: count() > 8)
    for _ in range(10):
        bench.loop.turn(0.02)
    assert count() <= 9 + 256 // len(framed(wire)), "what one read of a connection holds is answered"
    bench.service._allowance = Allowance(100, 0.0)
    bench.run(lambda: count() == 40)


@pytest.mark.unit
def test_a_flood_does_not_keep_others_from_their_answers(bench: Bench) -> None:
    """A socket that is always ready is always the first that the kernel names."""
    flood, patient = bench.udp(), bench.udp(socket.AF_INET6)
    wire = dns.message.make_query("web.", "A").to_wire()
    for _ in range(200):
        flood.send(wire)
    bench.loop.turn(0.1)
    patient.send(wire)
    for _ in range(5):
        bench.loop.turn(0.1)
    assert texts(dns.message.from_wire(patient.recv(4096)))
