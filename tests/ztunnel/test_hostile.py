"""A pod with a valid certificate attacks its neighbour's proxy: it loses its connection, and nobody else notices."""

import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.lab.attacks import goaway_code
from tests.ztunnel.test_http2 import hostile
from tests.ztunnel.test_pool import take_in
from tests.ztunnel.world import CLIENT, SERVER, VIP, Authority, World, patched, world
from ztunnel import frames
from ztunnel.channel import EarlyFailure, Offence, WorkerStatus
from ztunnel.failures import AT_ONCE
from ztunnel.fields import literal
from ztunnel.frames import ACK, CLIENT_OPENING, DATA, END_HEADERS, END_STREAM, HEADERS, PING, Code, frame
from ztunnel.handshakes import PER_SOURCE
from ztunnel.limits import Limits
from ztunnel.tls import Credentials

pytestmark = pytest.mark.kernel


def request(authority: str) -> bytes:
    return literal(b":method", b"CONNECT") + literal(b":authority", authority.encode())


ACCEPTED = request("10.198.0.2:8080")
PATIENT = patched(
    "from ztunnel import budget, penance, tuning",
    "from ztunnel.allowance import Allowance",
    "tuning.HANDSHAKE_S = penance._FORGOTTEN_AFTER_S = 100.0",
    "budget.Allowance = lambda burst, rate_per_s: Allowance(burst, rate_per_s / 100)",
)
"""A worker for a busy machine: a handshake may take, and an offence is remembered for, as long as that may need, and a peer
comes to be allowed little more while its flood is read.
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[World]:
    with world("hostile") as made:
        made.server.program = PATIENT
        made.start()
        yield made


@pytest.fixture
def good(mesh: World) -> Iterator[None]:
    """A client with a standing connection and a new one every moment: none may fail while the test runs."""
    stop, served, failures = threading.Event(), threading.Event(), []
    listener = mesh.server.listen(8080)

    def serve(server: socket.socket) -> None:
        try:
            with server:
                while data := server.recv(100):
                    server.sendall(data)
        except OSError:
            pass  # an attacker's stream

    def accept() -> None:
        while True:
            try:
                server, _ = listener.accept()
            except OSError:
                return
            server.settimeout(40)
            threading.Thread(target=serve, args=(server,), daemon=True).start()

    def ask() -> None:
        try:
            with mesh.client.connect(VIP, 80) as standing:
                while not stop.wait(0.005):
                    with mesh.client.connect(VIP, 80) as fresh:
                        for sock in (fresh, standing):
                            sock.sendall(b"ping")
                            assert sock.recv(4) == b"ping"
                    served.set()
        except (OSError, AssertionError) as error:
            failures.append(error)
            served.set()

    threads = [threading.Thread(target=accept), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    served.wait()  # whoever floods its address before its tunnel stands would have its handshake shown out
    yield
    stop.set()
    threads[1].join()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    threads[0].join()
    assert not failures, failures


def attack(mesh: World) -> ssl.SSLSocket:
    raw = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
    return Credentials(mesh.authority.certificate_for(CLIENT)).client.wrap_socket(raw)


def last_words(tls: ssl.SSLSocket) -> bytes:
    """All that the server says until it ends the connection."""
    said = b""
    try:
        while part := tls.recv(65536):
            said += part
    except (ConnectionResetError, ssl.SSLError):
        pass
    return said


def told(mesh: World, port: int, text: str) -> None:
    """The worker names the attacker of that port once for the connection, whatever it says of each stream, and its kind."""
    found = mesh.server.worker.wait_for(EarlyFailure, lambda message: message.source[1] == port and text in message.error)
    assert found.identity == CLIENT
    mesh.server.worker.wait_for(Offence, lambda offence: offence.identity == CLIENT and offence.kind in found.error)


def send(tls: ssl.SSLSocket, data: bytes) -> None:
    try:
        tls.sendall(data)
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
        pass  # cut off in the middle: what the server said before is still to be read


def test_every_violation_costs_its_own_connection(mesh: World, good: None) -> None:
    mesh.server.worker.heard.clear()
    for name, data, code in hostile(ACCEPTED):
        if name == "stream overflow":
            continue  # the application takes what comes, so that no window overflows
        with attack(mesh) as tls:
            port = tls.getsockname()[1]
            send(tls, CLIENT_OPENING + data)
            said = last_words(tls)
        told(mesh, port, f"h2 failed: {code.name}: ")
        assert goaway_code(said) in (code, None), name  # None: a reset overtook it, as not all was read


def test_rapid_reset_and_stream_floods(mesh: World, good: None) -> None:
    for pattern, block in ((True, ACCEPTED), (False, ACCEPTED), (False, request("10.198.0.2:15008"))):
        with attack(mesh) as tls:
            port = tls.getsockname()[1]
            send(tls, CLIENT_OPENING)
            sids = range(1, 4001, 2)
            flood = (frame(HEADERS, END_HEADERS, sid, block) + (frames.rst_stream(sid, 8) if pattern else b"") for sid in sids)
            send(tls, b"".join(flood))
            last_words(tls)
        told(mesh, port, "h2 failed: ENHANCE_YOUR_CALM: too many ")


def test_who_is_refused_again_and_again_keeps_its_good_streams(mesh: World, good: None) -> None:
    """A busy client of what a policy refuses, or of a port where nobody listens, offends nobody: it is asked elsewhere."""
    mesh.server.worker.catch_up()
    mesh.server.worker.heard.clear()
    refused = request("10.198.0.2:15008")
    with attack(mesh) as tls:
        send(tls, CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, ACCEPTED))
        said, sids = b"", iter(range(3, 60_000, 2))
        while goaway_code(said) is None:
            asked = [next(sids) for _ in range(100)]
            send(tls, b"".join(frame(HEADERS, END_HEADERS, sid, refused) for sid in asked))
            while frames.rst_stream(asked[-1], Code.NO_ERROR) not in said:
                said += tls.recv(65536)
        assert goaway_code(said) == Code.NO_ERROR
        send(tls, frame(PING, ACK, 0, frames.DRAIN_PAYLOAD) + frame(DATA, 0, 1, b"still here"))
        while b"still here" not in said:
            said += tls.recv(65536)
    mesh.server.worker.catch_up()
    assert not [one for one in mesh.server.worker.heard if isinstance(one, Offence)]


def test_a_peer_that_never_reads_the_answers_it_asks_for(mesh: World, good: None) -> None:
    """Slowly, so that no allowance is overdrawn: what waits for it stays small."""
    before = mesh.server.worker.memory_kib()
    with attack(mesh) as tls:
        send(tls, CLIENT_OPENING)
        for _ in range(20):
            send(tls, frame(PING, 0, 0, bytes(8)) * 10)
    assert mesh.server.worker.memory_kib() - before < 16 << 10


def test_silent_connections_do_not_keep_others_out(mesh: World, good: None) -> None:
    idle = [mesh.client.connect(mesh.server.address, 15008, mark=0x539) for _ in range(700)]
    until = time.monotonic() + 1
    while time.monotonic() < until:
        with mesh.client.connect(VIP, 80) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
    for sock in idle:
        sock.close()
    assert "evicted" in mesh.server.worker.early("evicted").error


def test_a_pods_limits_turn_away_what_is_too_much_and_nothing_else() -> None:
    with world("limits") as mesh:
        mesh.server.program = PATIENT
        mesh.server.configuration["pod_limits"] = Limits(connections=5, streams=2, handshakes=2, buffered_bytes=1 << 20)
        mesh.start()
        worker = mesh.server.worker

        def used(status: WorkerStatus, kind: str) -> tuple[int, int]:
            """Held, and refused."""
            return next((held, refused) for name, held, refused in status.usage["server"] if name == kind)

        def await_use(kind: str, held: int, refused: int) -> None:
            worker.wait_for(WorkerStatus, lambda status: used(status, kind) == (held, refused))

        def silent(count: int) -> list[socket.socket]:
            crowd = []
            for _ in range(count):
                with suppress(ConnectionResetError):  # may be there before connect() has returned
                    crowd.append(mesh.client.connect(mesh.server.address, 15008, mark=0x539))
            return crowd

        with mesh.server.listen(8080) as deaf, attack(mesh) as tls:
            send(tls, CLIENT_OPENING)
            said = tls.recv(65536)
            crowd = silent(3)
            worker.early("evicted")
            worker.heard.clear()
            held, refused = used(worker.wait_for(WorkerStatus), "handshakes")
            assert held == 2 and refused >= 1
            for sock in crowd:
                sock.close()
            send(tls, b"".join(frame(HEADERS, END_HEADERS, sid, ACCEPTED) for sid in (1, 3, 5)))
            while frames.rst_stream(5, Code.NO_ERROR) not in said:
                said += (part := tls.recv(65536))
                assert part
            assert worker.early("too many streams").source[1] == tls.getsockname()[1]
            await_use("streams", 2, 1)
            assert deaf.fileno() > 0
            crowd = silent(4)
            await_use("connections", 5, 2)
            for sock in crowd:
                sock.close()
        worker.heard.clear()
        await_use("streams", 0, 1)  # what has ended is not held
        await_use("connections", 0, 2)


def test_who_says_nothing_costs_no_tunnel_and_one_line_stands_for_many() -> None:
    with world("silent") as mesh:
        mesh.server.program = PATIENT
        mesh.start()
        worker = mesh.server.worker
        os.kill(worker.process.pid, signal.SIGSTOP)  # until all are at the door: it shows them out by the hundred a second then
        crowd = [mesh.client.connect(mesh.server.address, 15008, mark=0x539) for _ in range(PER_SOURCE + 600)]
        os.kill(worker.process.pid, signal.SIGCONT)
        status = worker.wait_for(WorkerStatus, lambda status: status.gauges["handshakes"] == PER_SOURCE)
        assert status.gauges["tunnels"] == 0
        told: list[EarlyFailure] = []
        while sum(one.count for one in told) < 600:
            told.append(worker.wait_for(EarlyFailure))
        assert all("evicted before it was greeted" in one.error for one in told)
        assert sum(one.count for one in told) == 600 and [one.count for one in told[:AT_ONCE]] == [1] * AT_ONCE
        assert any(one.count > 1 for one in told)
        with Credentials(mesh.authority.certificate_for(CLIENT)).client.wrap_socket(crowd[-1]) as tls:
            send(tls, CLIENT_OPENING + frame(PING, 0, 0, b"the last"))
            said = b""
            while b"the last" not in said:
                said += (part := tls.recv(65536))
                assert part, "whoever speaks at last is greeted"
        for sock in crowd[:-1]:
            sock.close()


def test_who_offends_again_and_again_is_greeted_ever_later() -> None:
    with world("penance") as mesh:
        mesh.server.configuration["offender_pause_s"] = 0.4
        mesh.start()
        began = time.monotonic()
        for _ in range(5):
            with attack(mesh) as tls:
                send(tls, b"x" * 30)
                last_words(tls)
        assert time.monotonic() - began > 0.05 + 0.1 + 0.2 + 0.4


def test_who_is_greeted_late_is_judged_by_what_is_believed_then() -> None:
    """Else a root that is none any more lets in whoever offended just before."""
    other = Authority("other root")
    with world("late") as mesh:
        mesh.server.program = PATIENT
        mesh.server.configuration["offender_pause_s"] = 64.0  # 8 s for the first offence
        mesh.start()
        take_in(mesh.server, mesh.authority.certificate_for(SERVER, roots=mesh.authority.pem + other.pem))
        with attack(mesh) as tls:
            send(tls, b"x" * 30)
            last_words(tls)
        foreign = Credentials(other.certificate_for(CLIENT, roots=mesh.authority.pem))
        raw = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
        tls = foreign.client.wrap_socket(raw, do_handshake_on_connect=False)
        tls.setblocking(False)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        mesh.server.worker.wait_for(WorkerStatus, lambda status: status.gauges["handshakes"] == 1)
        take_in(mesh.server, mesh.authority.certificate_for(SERVER))
        with tls:
            tls.settimeout(40)
            with suppress(ConnectionResetError, ssl.SSLError):
                tls.do_handshake()
                send(tls, CLIENT_OPENING + frame(PING, 0, 0, b"are you?"))
            assert b"are you?" not in last_words(tls)
        mesh.server.worker.early("tls handshake error: ")


def test_who_offends_again_and_again_may_open_ever_fewer_streams() -> None:
    with world("restrained") as mesh:
        mesh.server.program = PATIENT
        mesh.server.configuration["offender_pause_s"] = 0.01
        mesh.start()
        flood = b"".join(frame(HEADERS, END_HEADERS, sid, ACCEPTED) for sid in range(1, 4001, 2))
        for _ in range(3):
            with attack(mesh) as tls:
                send(tls, CLIENT_OPENING + flood)
                last_words(tls)
            mesh.server.worker.wait_for(EarlyFailure, lambda message: "too many refused" in message.error)
            mesh.server.worker.heard.clear()
        with attack(mesh) as tls:
            send(tls, CLIENT_OPENING + frame(PING, 0, 0, b"the next"))
            said = b""
            while b"the next" not in said:
                said += tls.recv(65536)
        assert frames.settings([(frames.Setting.MAX_CONCURRENT_STREAMS, 25)]) in said, "after three offences"


def test_requests_that_are_wrong_but_well_formed_get_a_status(mesh: World, good: None) -> None:
    with attack(mesh) as tls:
        send(tls, CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, request("10.0.0.1:80")) + frame(PING, 0, 0, b"the next"))
        said, response_400 = b"", frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x8c")
        while b"the next" not in said:
            said += tls.recv(65536)
        assert frames.rst_stream(1, Code.NO_ERROR) in said and response_400 in said
        tls.close()
    assert "ip mismatch: 10.198.0.2 != 10.0.0.1" in mesh.server.worker.early("ip mismatch").error
