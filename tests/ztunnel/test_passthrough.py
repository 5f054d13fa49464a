"""The pump between two plain sockets, where what came before it has to go first."""

import socket

import pytest

from ztunnel.limits import Held
from ztunnel.loop import Loop
from ztunnel.passthrough import Passthrough
from ztunnel.stream_owner import NOBODY

pytestmark = pytest.mark.unit

EARLY, LATER = b"first" * 3000, b"second" * 3000


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def test_bytes_kept_for_another_endpoint_stay_the_first_where_it_takes_few_at_once() -> None:
    loop, held = Loop(), Held(1 << 20)
    local, application = pair()
    remote, endpoint = pair()
    remote.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    assert application.send(LATER) == len(LATER)
    pump = Passthrough(loop, NOBODY, local, remote, held, EARLY)
    assert 0 < held.bytes < len(EARLY), "the endpoint took none of it, or all: this shows nothing"
    came = bytearray()
    while len(came) < len(EARLY + LATER):
        loop.turn(0.1)
        try:
            came += endpoint.recv(1 << 16)
        except BlockingIOError:
            pytest.fail(f"{len(came)} bytes of {len(EARLY + LATER)}, and then no more")
    assert came == EARLY + LATER
    assert held.bytes == 0
    pump.abort("-", "")
    for sock in (application, endpoint):
        sock.close()
