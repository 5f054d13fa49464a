"""Outgoing tunnels are shared by who may share them, made one at a time, bounded in streams, and given back when idle."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from random import Random

import pytest

from tests.frozen import frozen
from tests.ztunnel.world import CLIENT, PROGRAM, SERVER, Authority, PodWorld, World, patched, run, world
from ztunnel.channel import (
    CertificateFailed,
    Closed,
    NeedCertificate,
    Opened,
    RemovePod,
    SetCertificate,
    UpdateInventory,
    WorkerStatus,
)
from ztunnel.connection_record import ConnectionRecord
from ztunnel.frames import DEFAULT_WINDOW, Sizes
from ztunnel.ledger import SocketAddress
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

STREAMS = 4
_seen = [0]
"""The newest connection of the server that a test has looked at."""


@contextmanager
def pooling(name: str, idle_s: float, program: Sequence[str] = PROGRAM) -> Iterator[World]:
    """A world of its own, whose server's connections are counted from one."""
    before, _seen[0] = _seen[0], 0
    with world(name) as made:
        made.client.configuration = {"tuning": Tuning(pool_streams=STREAMS, pool_idle_s=idle_s)}
        made.client.program = program
        made.start()
        yield made
    _seen[0] = before


@contextmanager
def serving(shared: World) -> Iterator[World]:
    with shared.server.listen(8080, socket.AF_INET6) as listener:
        threading.Thread(target=echo_all, args=(listener,), daemon=True).start()
        yield shared
        listener.shutdown(socket.SHUT_RDWR)
    shared.reset_sockets()


# Who stands still for a test's sake, in the midst of a handshake, does so however long a busy machine takes over the rest.
UNHURRIED = patched("from ztunnel import tuning", "tuning.HANDSHAKE_S = 60.0")


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with pooling("pool", idle_s=600.0, program=UNHURRIED) as made:
        yield made


@pytest.fixture
def mesh(shared: World) -> Iterator[World]:
    """With an echoing application, in both families, and without a tunnel."""
    shared.client.worker.tell(RemovePod(shared.client.name))
    shared.client.add_pod()
    shared.settle()
    with serving(shared):
        yield shared


@pytest.fixture
def forgetful() -> Iterator[World]:
    """One whose tunnels go soon when they are idle."""
    with pooling("forgetful", idle_s=1.5) as made, serving(made):
        yield made


def echo_all(listener: socket.socket) -> None:
    listener.settimeout(None)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=echo, args=(client,), daemon=True).start()


def echo(client: socket.socket) -> None:
    with client:
        try:
            while data := client.recv(4096):
                client.sendall(data)
        except OSError:
            return


def talk(client: socket.socket, text: bytes = b"x") -> None:
    client.sendall(text)
    got = b""
    while len(got) < len(text):
        piece = client.recv(4096)
        assert piece, "ended"
        got += piece
    assert got == text


def tunnels(mesh: World, count: int) -> None:
    """Wait until the client's worker has so many; what it said of earlier does not count."""
    forget(mesh)
    mesh.client.worker.wait_for(WorkerStatus, lambda status: status.gauges["tunnels"] == count)


def forget(mesh: World) -> None:
    """Whatever the client's worker has said by now."""
    mesh.client.worker.catch_up()
    mesh.client.worker.heard.clear()


def carriers(mesh: World, count: int) -> list[SocketAddress]:
    """The tunnels that carried so many connections, by their client ends."""
    records: dict[int, ConnectionRecord] = {}
    while len(records) < count:
        # A connection that was over at once is told of once.
        told = mesh.server.worker.wait_for(object, lambda message: isinstance(message, Opened | Closed))
        assert isinstance(told, Opened | Closed)
        if told.record.number > _seen[0]:
            records[told.record.number] = told.record
    _seen[0] = max(records)
    return [record.source for _, record in sorted(records.items())]


def test_connections_reused(mesh: World) -> None:
    for _ in range(3):
        with mesh.client.connect(mesh.server.address, 8080) as client:
            talk(client)
    assert len(set(carriers(mesh, 3))) == 1


def test_unique_keys_have_unique_connections(mesh: World) -> None:
    """Who is dialled elsewhere, or comes from elsewhere, has another tunnel."""
    for address in (mesh.server.address, mesh.server.address6, mesh.server.address):
        with mesh.client.connect(address, 8080) as client:
            talk(client)
    run("ip", "-n", mesh.client.netns, "addr", "replace", "10.198.0.77/32", "dev", "eth0")
    with mesh.client.make_socket() as client:
        client.bind(("10.198.0.77", 0))
        client.connect((mesh.server.address, 8080))
        talk(client)
    first, other, again, elsewhere = carriers(mesh, 4)
    assert first == again and len({first, other, elsewhere}) == 3


def test_single_pool(mesh: World) -> None:
    """Of many that come at once the first makes the tunnel, and the others wait for it."""
    clients = [mesh.client.connect(mesh.server.address, 8080) for _ in range(STREAMS)]
    for client in clients:
        talk(client)
    assert len(set(carriers(mesh, STREAMS))) == 1
    tunnels(mesh, 1)


def test_connection_limits(mesh: World) -> None:
    clients = [mesh.client.connect(mesh.server.address, 8080) for _ in range(2 * STREAMS + 1)]
    for client in clients:
        talk(client)
    seen = carriers(mesh, len(clients))
    assert max(seen.count(one) for one in set(seen)) == STREAMS and len(set(seen)) == 3
    clients[0].close()
    mesh.client.worker.closed()
    with mesh.client.connect(mesh.server.address, 8080) as client:
        talk(client)
        assert carriers(mesh, 1)[0] in seen, "room that was made is used"


def test_server_goaway(mesh: World) -> None:
    with mesh.client.connect(mesh.server.address, 8080) as client:
        talk(client)
    before = carriers(mesh, 1)
    mesh.server.worker.tell(RemovePod(mesh.server.name))
    tunnels(mesh, 0)
    mesh.server.add_pod()
    with mesh.client.connect(mesh.server.address, 8080) as client:
        talk(client)
    assert carriers(mesh, 1) != before


def test_an_idle_tunnel_goes_with_its_peer(mesh: World) -> None:
    """One that carries something stays: its pod may be ending."""
    own, idle = mesh.server.workload, mesh.client.connect(mesh.server.address6, 8080)
    with mesh.client.connect(mesh.server.address, 8080) as client:
        talk(client)
        talk(idle)
        idle.close()
        mesh.client.worker.closed()
        tunnels(mesh, 2)
        mesh.client.worker.tell(UpdateInventory([], [own.uid]))
        tunnels(mesh, 1)
        talk(client)
    mesh.client.worker.tell(UpdateInventory([own], []))


# A peer is taken for one that may be gone however lately it was heard.
DOUBTFUL = patched("from ztunnel import http2", "http2.HEARD_LATELY_S = 0.0")


@pytest.fixture
def doubtful() -> Iterator[World]:
    with pooling("doubtful", idle_s=600.0, program=DOUBTFUL) as made, serving(made):
        yield made


def test_a_connection_is_not_lost_in_a_tunnel_whose_peer_is_gone_without_a_word(doubtful: World) -> None:
    """As when a node loses its power, and the pod comes back elsewhere with the same address."""
    with doubtful.client.connect(doubtful.server.address, 8080) as client:
        talk(client)
    before = carriers(doubtful, 1)
    doubtful.client.worker.settle()
    netns = doubtful.server.netns
    run("ip", "-n", netns, "route", "add", "blackhole", f"{doubtful.client.address}/32")
    run("ip", "netns", "exec", netns, "ss", "-K", "state", "established", "sport", "=", ":15008")
    run("ip", "-n", netns, "route", "del", "blackhole", f"{doubtful.client.address}/32")
    with doubtful.client.connect(doubtful.server.address, 8080) as client:
        talk(client, b"all that I say")
    assert carriers(doubtful, 1) != before
    record = doubtful.client.worker.closed()
    assert (record.flag, record.error, record.bytes_sent, record.bytes_received) == ("-", "", 14, 14)


def test_who_lost_its_certificate_begins_nothing_in_tunnels_from_before(mesh: World) -> None:
    """Expired, or withdrawn by who gave it: at both ends. What is open goes on."""
    first = mesh.client.connect(mesh.server.address, 8080)
    talk(first)
    mesh.client.worker.tell(CertificateFailed(CLIENT, "withdrawn"))
    refused = mesh.client.connect(mesh.server.address, 8080)
    mesh.client.worker.wait_for(NeedCertificate)
    mesh.client.worker.tell(CertificateFailed(CLIENT, "withdrawn"))
    with pytest.raises(ConnectionResetError):
        refused.recv(1)
    mesh.client.worker.tell(mesh.authority.certificate_for(CLIENT))
    second = mesh.client.connect(mesh.server.address, 8080)
    talk(second)
    mesh.server.worker.tell(CertificateFailed(SERVER, "withdrawn"))
    mesh.server.worker.catch_up()
    talk(first)
    talk(second)  # behind the word that its tunnel takes nothing new
    third = mesh.client.connect(mesh.server.address, 8080)
    mesh.server.worker.wait_for(NeedCertificate)
    mesh.server.worker.tell(mesh.authority.certificate_for(SERVER))
    talk(third)
    assert len(set(carriers(mesh, 3))) == 3


def take_in(pod: PodWorld, certificate: SetCertificate) -> None:
    """Have its worker know it."""
    pod.worker.tell(certificate)
    pod.worker.catch_up()


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_root_that_is_gone_lets_nobody_in_by_tunnels_from_before(mesh: World, end: str) -> None:
    """What is open goes on; and while several roots are believed, old and new, nothing happens at all."""
    other, third = Authority("other root"), Authority("third root")
    own, foreign = (mesh.server, mesh.client) if end == "server" else (mesh.client, mesh.server)
    both = mesh.authority.pem + other.pem
    take_in(foreign, other.certificate_for(foreign.identity, roots=mesh.authority.pem))
    take_in(own, mesh.authority.certificate_for(own.identity, roots=both))
    first = mesh.client.connect(mesh.server.address, 8080)
    talk(first)
    for roots in (both, both + third.pem, third.pem + both):
        take_in(own, mesh.authority.certificate_for(own.identity, roots=roots))
        with mesh.client.connect(mesh.server.address, 8080) as client:
            talk(client)
        talk(first)
    assert len(set(carriers(mesh, 4))) == 1
    take_in(own, mesh.authority.certificate_for(own.identity))
    talk(first)
    with pytest.raises(ConnectionResetError):
        mesh.client.connect(mesh.server.address, 8080).recv(1)
    talk(first)
    take_in(foreign, mesh.authority.certificate_for(foreign.identity))
    with mesh.client.connect(mesh.server.address, 8080) as client:
        talk(client)
    assert len(set(carriers(mesh, 1))) == 1
    talk(first)


def test_a_root_that_goes_while_a_pod_is_unknown_lets_nobody_in(mesh: World) -> None:
    other, own = Authority("other root"), mesh.server.workload
    both = mesh.authority.pem + other.pem
    take_in(mesh.client, other.certificate_for(CLIENT, roots=mesh.authority.pem))
    take_in(mesh.server, mesh.authority.certificate_for(SERVER, roots=both))
    first = mesh.client.connect(mesh.server.address, 8080)
    talk(first)
    mesh.server.worker.tell(UpdateInventory([], [own.uid]))
    take_in(mesh.server, mesh.authority.certificate_for(SERVER))
    mesh.server.worker.tell(UpdateInventory([own], []))
    mesh.server.worker.catch_up()
    talk(first)  # behind the word that its tunnel takes nothing new
    with pytest.raises(ConnectionResetError):
        mesh.client.connect(mesh.server.address, 8080).recv(1)
    take_in(mesh.client, mesh.authority.certificate_for(CLIENT))


def test_who_loses_its_certificate_while_hands_are_shaken_begins_nothing(mesh: World) -> None:
    """Nor is the tunnel kept until there is another one."""
    with frozen([mesh.server.worker.process.pid]):
        waiting = mesh.client.connect(mesh.server.address6, 8080)
        mesh.client.worker.wait_for(WorkerStatus, lambda status: status.gauges["handshakes"] == 1)
        mesh.client.worker.tell(CertificateFailed(CLIENT, "withdrawn"))
        mesh.client.worker.catch_up()
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    assert "has no certificate any more" in mesh.client.worker.closed().error
    take_in(mesh.client, mesh.authority.certificate_for(CLIENT))
    with mesh.client.connect(mesh.server.address6, 8080) as client:
        talk(client)


def test_a_root_that_goes_while_hands_are_shaken_lets_nobody_in(mesh: World) -> None:
    other = Authority("other root")
    both = mesh.authority.pem + other.pem
    take_in(mesh.server, other.certificate_for(SERVER, roots=mesh.authority.pem))
    take_in(mesh.client, mesh.authority.certificate_for(CLIENT, roots=both))
    with frozen([mesh.server.worker.process.pid]):
        waiting = mesh.client.connect(mesh.server.address, 8080)
        mesh.client.worker.wait_for(WorkerStatus, lambda status: status.gauges["handshakes"] == 1)
        take_in(mesh.client, mesh.authority.certificate_for(CLIENT))
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    assert "untrusted issuer" in mesh.client.worker.closed().error
    take_in(mesh.server, mesh.authority.certificate_for(SERVER))


def test_idle_eviction(forgetful: World) -> None:
    with forgetful.client.connect(forgetful.server.address, 8080) as client:
        talk(client)
    carriers(forgetful, 1)
    tunnels(forgetful, 0)


def test_idle_eviction_with_persistent_stream(forgetful: World) -> None:
    """A tunnel that carries anything stays, however little moves; its idle neighbour goes."""
    with forgetful.client.connect(forgetful.server.address, 8080) as standing:
        talk(standing)
        with forgetful.client.connect(forgetful.server.address6, 8080) as client:
            talk(client)
        kept, idle = carriers(forgetful, 2)
        assert kept != idle
        tunnels(forgetful, 1)
        talk(standing)
        with forgetful.client.connect(forgetful.server.address, 8080) as client:
            talk(client)
        assert carriers(forgetful, 1) == [kept]


# Bulk is bulk however slowly a busy machine moves it, and who waits for another tunnel beside it waits.
CALM = patched("from ztunnel import pool", "pool._BULK_BYTES_PER_S, pool._PATIENCE_S = 1, 60.0")


@pytest.fixture
def calm() -> Iterator[World]:
    with pooling("calm", idle_s=600.0, program=CALM) as made, serving(made):
        yield made


def flood(client: socket.socket, stop: threading.Event) -> None:
    """Bulk, and not all that the machine can do."""
    block = bytes(1 << 18)
    while not stop.wait(0.004):
        client.sendall(block)
        left = len(block)
        while left:
            left -= len(client.recv(left))


def test_who_comes_while_bulk_flows_shares_no_tunnel_with_it(calm: World) -> None:
    """But with its like: two tunnels are enough."""
    stop = threading.Event()
    with ExitStack() as stack:
        bulk = stack.enter_context(calm.client.connect(calm.server.address, 8080))
        for _ in range(16):
            talk(bulk, bytes(1 << 18))
        before, *_ = carriers(calm, 1)
        flows = threading.Thread(target=flood, args=(bulk, stop))
        flows.start()
        try:
            for _ in range(3):
                talk(stack.enter_context(calm.client.connect(calm.server.address, 8080)))
        finally:
            stop.set()
            flows.join()
        apart = carriers(calm, 3)
        assert len(set(apart)) == 1 and before not in apart
    calm.client.worker.settle()
    with calm.client.connect(calm.server.address, 8080) as client:
        talk(client)
    assert carriers(calm, 1) == [before], "one that carries nothing is calm"


# Who is stalled once is stalled however soon the next one comes.
STALLED = patched("from ztunnel import pool", "pool._STALLED_S, pool._PATIENCE_S = 0.0, 60.0")


@pytest.fixture
def narrow() -> Iterator[World]:
    """Tunnels have the smallest windows there may be, both ways, for all streams together."""
    before, _seen[0] = _seen[0], 0
    with world("narrow") as made:
        made.client.program = STALLED
        for pod in made.pods.values():
            pod.configuration = {"tuning": Tuning(sizes=Sizes(DEFAULT_WINDOW, DEFAULT_WINDOW))}
        made.start()
        with serving(made):
            yield made
    _seen[0] = before


def test_who_reads_nothing_holds_up_what_fits_its_tunnel_and_nobody_who_comes_later(narrow: World) -> None:
    with ExitStack() as stack:
        deaf = stack.enter_context(narrow.server.listen(8081, socket.AF_INET6))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        held = 0
        for _ in range(3):
            client = stack.enter_context(narrow.client.connect(narrow.server.address, 8081))
            threading.Thread(target=pour, args=(client,), daemon=True).start()
            held = standstill(narrow, narrow.server, held)
            with narrow.client.connect(narrow.server.address, 8080) as other:
                talk(other)


def test_nor_does_who_does_not_read_what_a_server_sends(narrow: World) -> None:
    """The window that our own applications leave full is ours, and answers need it."""
    with ExitStack() as stack:
        mute = stack.enter_context(narrow.server.listen(8082, socket.AF_INET6))
        held = 0
        for _ in range(3):
            client = stack.enter_context(narrow.client.connect(narrow.server.address, 8082))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            server, _ = mute.accept()
            stack.enter_context(server)
            threading.Thread(target=pour, args=(server,), daemon=True).start()
            held = standstill(narrow, narrow.client, held)
            with narrow.client.connect(narrow.server.address, 8080) as other:
                talk(other)


def standstill(mesh: World, pod: PodWorld, before: int) -> int:
    """How many bytes wait at one end once they are more than before, and both ends, which are awake, have no more to move."""
    sizes: list[dict[str, int]] = []
    while not sizes or sizes[-3:] != sizes[-1:] * 3 or sizes[-1][pod.name] <= before:
        statuses = {one.name: one.worker.wait_for(WorkerStatus) for one in mesh.pods.values()}
        sizes.append({name: status.gauges["buffered_bytes"] for name, status in statuses.items()})
    return sizes[-1][pod.name]


def pour(client: socket.socket) -> None:
    """More than all buffers on the way hold."""
    with suppress(OSError):
        client.sendall(bytes(64 << 20))


def test_stress(forgetful: World) -> None:
    """Connections come and go in any order: each has its own bytes, and no tunnel more than its streams."""
    random = Random(7)
    with ExitStack() as stack:
        open_now: list[socket.socket] = []
        for number in range(300):
            address = random.choice((forgetful.server.address, forgetful.server.address6))
            client = stack.enter_context(forgetful.client.connect(address, 8080))
            open_now.append(client)
            talk(client, f"{number}".encode() * random.randrange(1, 50))
            while open_now and random.random() < 0.55:
                open_now.pop(random.randrange(len(open_now))).close()
        for client in open_now:
            talk(client)
    forgetful.client.worker.settle()
    tunnels(forgetful, 0)
