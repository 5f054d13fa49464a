"""The worker's resolver, against real nameservers on loopback: families, caching, merging, and servers that are slow or lie."""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from mesh.workload import Address, Workload
from tests.descriptors import open_descriptors
from tests.ports import unused_port
from tests.ztunnel.nameserver import Behaviour, Nameserver, code, nameserver, silence, zone
from ztunnel import dns_upstream as upstream_module
from ztunnel import resolver as resolver_module
from ztunnel.dns_counts import Counts
from ztunnel.dns_response import Response, Wishes, question_for
from ztunnel.dns_upstream import PLAIN, Home, Upstream
from ztunnel.loop import Loop
from ztunnel.nameservers import Nameservers, read_nameservers, read_search
from ztunnel.resolver import Resolver

pytestmark = pytest.mark.unit

ZONE = {
    "v4.example.": ["60 A 192.0.2.1"],
    "v6.example.": ["60 AAAA 2001:db8::1"],
    "both.example.": ["60 A 192.0.2.2", "60 AAAA 2001:db8::2"],
    "alias.example.": ["5 CNAME both.example."],
    "loop.example.": ["5 CNAME loop.example."],
    "many.example.": [f"60 A 192.0.2.{number}" for number in range(1, 200)],
    "brief.example.": ["0 A 192.0.2.3"],
    "dressed.example.": ["60 AAAA ::ffff:192.0.2.4"],
    "nowhere.example.": ["60 A 0.0.0.0", "60 AAAA ::", "60 AAAA ::ffff:0.0.0.0"],
    "partly.example.": ["60 A 0.0.0.0", "60 A 192.0.2.5"],
}
V4, V6 = ip_address("192.0.2.2"), ip_address("2001:db8::2")


class Bench:
    """A loop, a resolver, and the answers that came."""

    def __init__(self, path: Path, port: int, servers: list[str], timeout_s: float = 600.0) -> None:
        path.write_text("".join(f"nameserver {server}\n" for server in servers))
        self.loop = Loop()
        self.path = path
        home = Home(0x539)
        self.upstream = Upstream(self.loop, Nameservers(str(path)), home, port, timeout_s)
        self.counts = Counts()
        self.resolver = Resolver(self.upstream, home, self.counts)
        self.answers: list[Address | None] = []

    def ask(self, name: str, version: int = 4, who: object = None) -> None:
        self.resolver.resolve(name, version, who or object(), self.answers.append)

    def ask_servers(self, name: str, wishes: Wishes = PLAIN) -> tuple[Response | None, str]:
        heard: list[tuple[Response | None, str]] = []
        self.upstream.ask(self.upstream.home, question_for(name, 1), lambda *said: heard.append(said), wishes)
        self.run(lambda: heard)
        assert not self.upstream.under_way and not self.upstream.deadlines
        return heard[0]

    def run(self, done: Callable[[], object] = lambda: False) -> None:
        until = time.monotonic() + 40
        while time.monotonic() < until:
            if done():
                return
            self.loop.turn(0.01)
            self.upstream.deadlines.expire(self.loop.now)
        raise AssertionError("nothing happened")

    def get(self, name: str, version: int = 4) -> Address | None:
        self.answers.clear()
        self.ask(name, version)
        self.run(lambda: self.answers)
        return self.answers[0]


@pytest.fixture
def server() -> Iterator[Nameserver]:
    with nameserver(zone(ZONE, max_udp_bytes=1232)) as made:
        yield made


@pytest.fixture
def bench(server: Nameserver, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def several(behaviours: dict[str, Behaviour]) -> list[Nameserver]:
    made: list[Nameserver] = []
    for address, behave in behaviours.items():
        made.append(Nameserver(behave, address, made[0].port if made else 0))
    return made


@pytest.mark.parametrize(
    ("name", "version", "address"),
    [
        ("v4.example", 4, "192.0.2.1"),
        ("v4.example", 6, "192.0.2.1"),
        ("v6.example", 4, "2001:db8::1"),
        ("both.example", 4, "192.0.2.2"),
        ("both.example", 6, "2001:db8::2"),
        ("Both.Example.", 4, "192.0.2.2"),
        ("alias.example", 6, "2001:db8::2"),
        ("192.0.2.77", 6, "192.0.2.77"),
        ("2001:db8::77", 4, "2001:db8::77"),
        ("dressed.example", 6, "192.0.2.4"),
        ("::ffff:192.0.2.6", 6, "192.0.2.6"),
        ("partly.example", 4, "192.0.2.5"),
    ],
)
def test_the_preferred_family_first_else_the_other(bench: Bench, name: str, version: int, address: str) -> None:
    assert bench.get(name, version) == ip_address(address)


@pytest.mark.parametrize(
    "name",
    [
        "absent.example",
        "loop.example",
        "nowhere.example",
        "0.0.0.0",
        "a..b",
        "",
        "x" * 64,
        "\N{SNOWMAN}.example",
        "a b.example",
    ],
)
def test_names_that_lead_nowhere(bench: Bench, name: str) -> None:
    assert bench.get(name) is None
    assert bench.get("v4.example") == ip_address("192.0.2.1")


def test_answers_are_remembered_for_their_ttl_and_names_without_address_for_a_while(bench: Bench, server: Nameserver) -> None:
    assert bench.get("alias.example") == V4 and bench.get("ALIAS.example") == V4 and bench.get("absent.example") is None
    assert bench.get("absent.example", 6) is None
    asked = ["alias.example. A udp", "absent.example. A udp", "absent.example. AAAA udp"]
    assert server.names() == asked
    bench.loop.now += 5.5  # longer than the alias lasts, and than nothing does
    assert bench.get("alias.example") == V4 and bench.get("absent.example") is None
    assert server.names() == asked * 2
    assert bench.get("brief.example") and bench.get("brief.example"), "no TTL is shorter than a second"
    assert server.names().count("brief.example. A udp") == 1


def test_the_choice_is_random(bench: Bench) -> None:
    assert len({bench.get("many.example") for _ in range(40)}) > 10


def test_a_cut_answer_is_fetched_over_tcp(bench: Bench, server: Nameserver) -> None:
    assert bench.get("many.example")
    assert server.names() == ["many.example. A udp", "many.example. A tcp"]


def test_a_cut_answer_that_cannot_be_fetched_is_none(tmp_path: Path) -> None:
    """Least of all that the name has no address, which would be remembered."""
    whole = zone(ZONE, max_udp_bytes=512)
    serves_tcp: list[bool] = []

    def behave(query: dns.message.Message, how: str) -> list[bytes]:
        return whole(query, how) if how == "udp" or serves_tcp else []

    with nameserver(behave) as server:
        bench = Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])
        assert bench.get("many.example") is None
        serves_tcp.append(True)
        assert bench.get("many.example") is not None


def test_equal_questions_are_asked_once_and_who_left_is_not_called(bench: Bench, server: Nameserver) -> None:
    leaver = object()
    for _ in range(50):
        bench.ask("both.example")
    bench.ask("both.example", who=leaver)
    bench.resolver.forget_waiter(leaver)
    bench.run(lambda: bench.answers)
    assert bench.answers == [V4] * 50 and len(server.asked) == 1 and not bench.upstream.under_way


def test_one_who_is_answered_may_send_another_away(bench: Bench) -> None:
    first, second = object(), object()
    heard: list[str] = []

    def answer(name: str, other: object) -> Callable[[Address | None], None]:
        def done(_address: Address | None) -> None:
            heard.append(name)
            bench.resolver.forget_waiter(other)

        return done

    bench.resolver.resolve("both.example", 4, first, answer("first", second))
    bench.resolver.resolve("both.example", 4, second, answer("second", first))
    bench.run(lambda: heard)
    assert len(heard) == 1


def test_what_is_under_way_is_bounded(bench: Bench, server: Nameserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "MAX_QUESTIONS", 3)
    for number in range(5):
        bench.ask(f"n{number}.example")
    assert bench.answers == [None, None] and bench.resolver.refused == 2
    monkeypatch.setattr(upstream_module, "MAX_EXCHANGES", 3)
    monkeypatch.setattr(resolver_module, "MAX_QUESTIONS", 99)
    bench.ask("n9.example")
    assert bench.answers == [None, None, None]
    bench.run(lambda: len(bench.answers) == 6)
    assert bench.get("v4.example")


def test_the_cache_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch, server: Nameserver) -> None:
    monkeypatch.setattr(resolver_module, "CACHED_NAMES", 2)
    for name in ("v4.example", "both.example", "many.example", "v4.example"):
        assert bench.get(name)
    assert server.names().count("v4.example. A udp") == 2


def test_every_question_has_a_new_id_and_port(bench: Bench, server: Nameserver) -> None:
    for number in range(16):
        bench.get(f"name{number}.example")
    assert len({query.id for _, query in server.asked}) > 24 and len(set(server.sources)) > 16


@pytest.mark.parametrize("first", [silence, code(2), code(5)], ids=["silent", "servfail", "refused"])
def test_a_server_that_cannot_answer_is_followed_by_the_next(first: Behaviour, tmp_path: Path) -> None:
    servers = several({"127.0.0.1": first, "127.0.0.2": zone(ZONE)})
    bench = Bench(tmp_path / "resolv.conf", servers[0].port, ["127.0.0.1", "127.0.0.2"])
    try:
        bench.ask("both.example")
        bench.run(lambda: servers[0].asked)
        if first is silence:
            bench.upstream.deadlines.expire(bench.loop.now + bench.upstream.deadlines.timeout_s)
        bench.run(lambda: bench.answers)
        assert bench.answers == [V4]
        assert [len(server.asked) for server in servers] == [1, 1]
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize("refusal", [dns.rcode.FORMERR, dns.rcode.NOTIMP])
@pytest.mark.parametrize("name", ["v4.example", "many.example"])
def test_a_server_that_knows_no_edns_is_asked_without(tmp_path: Path, refusal: dns.rcode.Rcode, name: str) -> None:
    asked: list[tuple[str, int]] = []
    whole, refuse = zone(ZONE, max_udp_bytes=512), code(refusal)

    def behave(query: dns.message.Message, how: str) -> list[bytes]:
        asked.append((how, query.edns))
        return whole(query, how) if query.edns < 0 else refuse(query, how)

    with nameserver(behave) as server:
        bench = Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])
        assert bench.get(name) is not None
    assert asked == [("udp", 0), ("udp", -1), *([("tcp", -1)] if name == "many.example" else [])]


def test_nor_with_edns_over_tcp_where_that_is_what_it_does_not_know(tmp_path: Path) -> None:
    """What it said of it there is no part of what it says next."""
    asked: list[tuple[str, int]] = []
    whole, refuse = zone(ZONE, max_udp_bytes=512), code(dns.rcode.FORMERR)

    def behave(query: dns.message.Message, how: str) -> list[bytes]:
        asked.append((how, query.edns))
        return whole(query, how) if how == "udp" or query.edns < 0 else refuse(query, how)

    with nameserver(behave) as server:
        bench = Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])
        assert bench.get("many.example") is not None
    assert asked == [("udp", 0), ("tcp", 0), ("tcp", -1)]


def test_a_server_that_refuses_either_way_is_followed_by_the_next(tmp_path: Path) -> None:
    first, second = several({"127.0.0.1": code(dns.rcode.FORMERR), "127.0.0.2": zone(ZONE)})
    try:
        bench = Bench(tmp_path / "resolv.conf", first.port, ["127.0.0.1", "127.0.0.2"])
        assert bench.get("v4.example") == ip_address("192.0.2.1")
        assert (len(first.asked), len(second.asked)) == (2, 1)
    finally:
        first.close()
        second.close()


def cut(query: dns.message.Message, how: str) -> list[bytes]:
    """Part of an answer, and the rest nowhere."""
    return zone(ZONE, max_udp_bytes=512)(query, how) if how == "udp" else []


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (code(dns.rcode.SERVFAIL), code(dns.rcode.REFUSED), (dns.rcode.SERVFAIL, False)),
        (code(dns.rcode.REFUSED), cut, (dns.rcode.NOERROR, True)),
        (cut, code(dns.rcode.SERVFAIL), (dns.rcode.NOERROR, True)),
    ],
)
def test_the_best_of_what_servers_said_is_the_answer(
    first: Behaviour, second: Behaviour, said: tuple[int, bool], tmp_path: Path
) -> None:
    servers = several({"127.0.0.1": first, "127.0.0.2": second})
    bench = Bench(tmp_path / "resolv.conf", servers[0].port, ["127.0.0.1", "127.0.0.2"])
    try:
        response, reason = bench.ask_servers("many.example")
        assert response is not None and (response.code, response.truncated) == said and not reason
    finally:
        for server in servers:
            server.close()


def test_why_no_server_answered_is_told(tmp_path: Path) -> None:
    port = unused_port()
    refused = Bench(tmp_path / "resolv.conf", port, ["127.0.0.1"])
    assert refused.ask_servers("v4.example") == (None, "nameserver 127.0.0.1: Connection refused")
    with nameserver(silence) as silent:
        patient = Bench(tmp_path / "resolv.conf", silent.port, ["127.0.0.1"], timeout_s=0.05)
        assert patient.ask_servers("v4.example") == (None, "nameserver 127.0.0.1 does not answer")
    nobody = Bench(tmp_path / "resolv.conf", port, [])
    assert nobody.ask_servers("v4.example") == (None, "no nameserver is known")


def test_who_wants_no_edns_is_not_asked_for_twice(tmp_path: Path) -> None:
    with nameserver(code(dns.rcode.FORMERR)) as server:
        bench = Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])
        response, _ = bench.ask_servers("v4.example", Wishes(edns=False))
        assert response is not None and response.code == dns.rcode.FORMERR
        assert [query.edns for _, query in server.asked] == [-1] * upstream_module.ROUNDS


def test_a_question_over_which_we_stumble_is_over(bench: Bench) -> None:
    heard: list[tuple[Response | None, str]] = []
    exchange = bench.upstream.ask(Home(0x539), question_for("v4.example", 1), lambda *said: heard.append(said))
    assert exchange is not None
    exchange.crashed(KeyError("x"))
    assert heard == [(None, "internal error: 'x'")] and not bench.upstream.under_way
    assert bench.get("both.example") == V4 and len(heard) == 1


def test_what_nobody_wants_any_more_is_not_asked(bench: Bench, server: Nameserver) -> None:
    exchange = bench.upstream.ask(Home(0x539), question_for("v4.example", 1), lambda *_: bench.answers.append(None))
    assert exchange is not None
    exchange.cancel()
    assert bench.get("both.example") == V4 and server.names() == ["both.example. A udp"] and bench.answers == [V4]


def test_an_answer_that_comes_in_pieces_is_put_together(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", unused_port()))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener, datagrams:
        datagrams.bind(listener.getsockname())
        bench = Bench(tmp_path / "resolv.conf", listener.getsockname()[1], ["127.0.0.1"])
        heard: list[Response | None] = []
        bench.upstream.ask(Home(0x539), question_for("many.example", 1), lambda response, _: heard.append(response))
        bench.run(lambda: readable(datagrams))
        query, peer = datagrams.recvfrom(4096)
        datagrams.sendto(cut(dns.message.from_wire(query), "udp")[0], peer)
        bench.run(lambda: readable(listener))
        stream, _ = listener.accept()
        with stream:
            bench.run(lambda: readable(stream))
            size = int.from_bytes(stream.recv(2), "big")
            whole = zone(ZONE)(dns.message.from_wire(stream.recv(size)), "tcp")[0]
            sent = len(whole).to_bytes(2, "big") + whole
            for part in (sent[:1], sent[1:2], sent[2:900], sent[900:-1]):
                stream.send(part)
                bench.loop.turn(1.0)
                assert not heard
            stream.send(sent[-1:])
            bench.run(lambda: heard)
    assert heard[0] is not None and heard[0].message == whole and len(heard[0].answers) == 199


def test_a_server_on_a_link_is_asked_from_where_the_link_is(tmp_path: Path) -> None:
    """The interface's name says nothing in a pod, whose links are others."""
    made: list[tuple[str, int]] = []

    class Place:
        def __init__(self, name: str) -> None:
            self.name = name

        def make_socket_of(self, family: int, kind: int) -> socket.socket:
            made.append((self.name, family))
            raise OSError(errno.ENETUNREACH, "no such link")

    bench = Bench(tmp_path / "resolv.conf", 53, ["fe80::1%lo", "127.0.0.1", "::1"])
    bench.upstream.home = Place("home")
    heard: list[str] = []
    bench.upstream.ask(Place("pod"), question_for("v4.example", 1), lambda _answer, reason: heard.append(reason))
    bench.run(lambda: heard)
    assert made == [("home", socket.AF_INET6), ("pod", socket.AF_INET), ("pod", socket.AF_INET6)] * 2


def test_a_server_that_is_not_there_and_one_that_never_answers_end_soon(tmp_path: Path) -> None:
    with nameserver(silence) as silent:
        bench = Bench(tmp_path / "resolv.conf", silent.port, ["127.0.0.3", "127.0.0.1"], timeout_s=0.05)
        assert bench.get("both.example") is None
        bench.run(lambda: len(silent.asked) >= 4)
        assert silent.names() == ["both.example. A udp"] * 2 + ["both.example. AAAA udp"] * 2
        assert not bench.upstream.under_way and not bench.resolver


def test_without_nameservers_nothing_is_found(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "resolv.conf", 53, [])
    assert bench.get("both.example") is None


def test_answers_to_other_questions_are_not_believed(tmp_path: Path) -> None:
    def lie(query: dns.message.Message, how: str) -> list[bytes]:
        honest = zone(ZONE)(query, how)
        forged = zone({"both.example.": ["60 A 203.0.113.66"]})(query, how)[0]
        other_id = bytes((forged[0] ^ 1,)) + forged[1:]
        other_name = forged.replace(b"\4both", b"\4moth")
        return [other_id, other_name, forged[:11], b"", forged[:-1], *honest]

    with nameserver(lie) as server:
        bench = Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])
        assert bench.get("both.example") == V4


def test_a_flood_of_forged_answers_costs_the_attempt(tmp_path: Path) -> None:
    def flood(query: dns.message.Message, how: str) -> list[bytes]:
        wire = zone(ZONE)(query, how)[0]
        return [bytes((wire[0] ^ 1,)) + wire[1:]] * 40

    with nameserver(flood) as server:
        bench = Bench(tmp_path / "resolv.conf", server.port, ["127.0.0.1"])
        assert bench.get("both.example") is None
        assert len(server.asked) == 4


def test_nothing_is_left_open(bench: Bench, server: Nameserver) -> None:
    before = open_descriptors()
    for name in ("many.example", "both.example", "absent.example"):
        bench.get(name)
    bench.ask("again.example")
    for exchange in list(bench.upstream.under_way):
        exchange.cancel()
    server.close()  # its thread may have opened its own after we looked, and closes a stream after its answer
    assert open_descriptors() <= before and not len(bench.upstream.deadlines)


def test_lookups_are_counted_by_name_and_client(bench: Bench) -> None:
    client = Workload("Kubernetes//Pod/shop/client", "client", "shop")
    for _ in range(3):
        bench.resolver.resolve("both.example", 4, object(), bench.answers.append, client)
    bench.run(lambda: bench.answers)
    taken = bench.counts.take()
    assert taken is not None and taken.on_demand == {("both.example", client.uid): 3} and bench.counts.take() is None


def test_resolv_conf_is_read_as_it_is_meant_and_again_when_it_changes(tmp_path: Path) -> None:
    text = "; c\nnameserver 10.0.0.1\nnameserver\nnameserver nonsense\nsearch a b\nnameserver 10.0.0.1 \n\tnameserver fd00::1\n"
    assert read_nameservers(text) == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert len(read_nameservers("".join(f"nameserver 10.0.0.{number}\n" for number in range(1, 9)))) == 3
    path = tmp_path / "resolv.conf"
    servers = Nameservers(str(path))
    assert servers.current(1.0) == ()
    path.write_text("nameserver 10.0.0.1\n")
    assert servers.current(1.5) == (), "it was looked at just now"
    assert servers.current(2.5) == (ip_address("10.0.0.1"),)
    path.write_text("nameserver 10.0.0.22\n")
    assert servers.current(4.0) == (ip_address("10.0.0.22"),)
    path.write_text("")
    assert servers.current(6.0) == (ip_address("10.0.0.22"),), "somebody is writing it"
    path.write_text("nameserver 10.0.0.3\n")
    assert servers.current(8.0) == (ip_address("10.0.0.3"),)
    path.unlink()
    assert servers.current(10.0) == (ip_address("10.0.0.3"),)


def test_search_domains_are_those_of_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert read_search(str(path)) == ()
    path.write_text("domain one\nsearch Two. three two .\nnameserver 10.0.0.1\n")
    assert read_search(str(path)) == ("two", "three")
    path.write_text("nameserver 10.0.0.1\nsearch\n")
    assert read_search(str(path)) == ()


def test_a_home_socket_is_marked_where_it_may_be() -> None:
    with Home(0x539).make_socket_of(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == (0x539 if os.geteuid() == 0 else 0)
