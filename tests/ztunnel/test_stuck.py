"""Who comes just before applications that read nothing fill its tunnel, and has said nothing by then."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.ztunnel.test_pool import echo_all, pour, standstill, talk
from tests.ztunnel.world import World, patched, world
from ztunnel.channel import Closed, Opened
from ztunnel.frames import DEFAULT_WINDOW, Sizes
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

ECHO, DEAF, PROMPT = 8080, 8081, 8082
SMALLEST = Sizes(DEFAULT_WINDOW, DEFAULT_WINDOW)

# How a connection began is remembered however long a busy machine takes to fill its tunnel.
BEGINNING = patched("from ztunnel import ledger", "ledger.SETTLED_NS = 60_000_000_000")


@contextmanager
def small(tuning: Tuning, program: Sequence[str] = BEGINNING) -> Iterator[World]:
    """Tunnels have the smallest windows there may be, and one application echoes."""
    with world("stuck") as made:
        made.client.program = program
        made.client.configuration = {"tuning": tuning}
        made.server.configuration = {"tuning": Tuning(sizes=SMALLEST)}
        made.start()
        with made.server.listen(ECHO, socket.AF_INET6) as listener:
            threading.Thread(target=echo_all, args=(listener,), daemon=True).start()
            yield made
            listener.shutdown(socket.SHUT_RDWR)
        made.reset_sockets()


def open_all(mesh: World, stack: ExitStack, ports: Sequence[int]) -> list[socket.socket]:
    """Connections that share a tunnel."""
    clients = [stack.enter_context(mesh.client.connect(mesh.server.address, port)) for port in ports]
    for _ in clients:
        mesh.client.worker.wait_for(Opened)
    return clients


def deafen(mesh: World, stack: ExitStack) -> socket.socket:
    """A server whose connections nobody reads."""
    listener = stack.enter_context(mesh.server.listen(DEAF, socket.AF_INET6))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return listener


def fill(sock: socket.socket) -> None:
    threading.Thread(target=pour, args=(sock,), daemon=True).start()


def test_who_has_said_nothing_when_its_tunnel_is_full_goes_on_in_another() -> None:
    with small(Tuning(sizes=SMALLEST)) as mesh, ExitStack() as stack:
        deafen(mesh, stack)
        quiet, *filling = open_all(mesh, stack, (ECHO, DEAF, DEAF))
        for client in filling:
            fill(client)
        standstill(mesh, mesh.server, 0)
        talk(quiet)
        quiet.close()
        record = mesh.client.worker.closed()
        assert (record.flag, record.error, record.bytes_sent, record.bytes_received) == ("-", "", 1, 1)
        assert not [one for one in mesh.client.worker.heard if isinstance(one, Opened)], "it is told of once"


def test_so_does_who_has_heard_nothing_because_nobody_reads_what_its_own_node_gets() -> None:
    with small(Tuning(sizes=SMALLEST)) as mesh, ExitStack() as stack:
        mute = stack.enter_context(mesh.server.listen(DEAF, socket.AF_INET6))
        prompt = stack.enter_context(mesh.server.listen(PROMPT, socket.AF_INET6))
        quiet, *filling = open_all(mesh, stack, (PROMPT, DEAF, DEAF))
        first, _ = prompt.accept()
        stack.enter_context(first)
        for client in filling:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            fill(stack.enter_context(mute.accept()[0]))
        standstill(mesh, mesh.client, 0)
        with suppress(ConnectionResetError):  # it may have gone by now
            first.sendall(b"hello")
        second, _ = prompt.accept()
        with second:
            second.sendall(b"hello")
            assert quiet.recv(5) == b"hello"


def test_who_can_go_nowhere_else_is_told_and_who_has_spoken_waits() -> None:
    tuning = Tuning(sizes=SMALLEST, endpoint_attempts=1, connect_timeout_s=4.0)
    with small(tuning) as mesh, ExitStack() as stack:
        deaf = deafen(mesh, stack)
        spoken, quiet, *filling = open_all(mesh, stack, (ECHO, ECHO, DEAF, DEAF))
        talk(spoken)
        for client in filling:
            fill(client)
        standstill(mesh, mesh.server, 0)
        spoken.sendall(b"more")
        quiet.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            quiet.recv(1)
        record = mesh.client.worker.closed()
        assert record.flag == "-" and "applications do not read what fills the tunnel to" in record.error
        for _ in filling:
            threading.Thread(target=drain, args=(stack.enter_context(deaf.accept()[0]),), daemon=True).start()
        assert spoken.recv(4) == b"more"
        assert not [one for one in mesh.client.worker.heard if isinstance(one, Closed) and one.record.error]


def drain(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass
