"""What a hostile peer does to be heard: it keeps the connection on which it asks."""

import base64
import socket
import threading

import pytest

from tests.lab.attacker import Inside
from tests.lab.link import Link
from tests.lab.witness import pong
from tests.lab.world import eventually
from ztunnel.frames import END_HEADERS, HEADERS, PING, frame

pytestmark = pytest.mark.unit

PINGS = [frame(PING, 0, 0, bytes([number]) * 8) for number in range(3)]
PONGS = [pong(bytes([number]) * 8) for number in range(3)]
QUESTION, ANSWER = frame(HEADERS, END_HEADERS, 1, b"who?"), frame(HEADERS, END_HEADERS, 1, b"\x88")


def heard(server: socket.socket, size: int) -> bytes:
    return server.recv(size, socket.MSG_WAITALL)


def test_a_kept_connection_answers_pings_that_come_by_halves_and_between_answers() -> None:
    inside = Inside()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server, own:
        server.settimeout(100)
        link = inside._links[1] = Link(own, None)
        inside.keep(1)
        server.sendall(PINGS[0])
        assert heard(server, 17) == PONGS[0]
        server.sendall(PINGS[1][:5])
        eventually(lambda: link.said == PINGS[1][:5])

        def answer() -> None:
            assert heard(server, len(QUESTION)) == QUESTION
            server.sendall(PINGS[1][5:] + PINGS[2] + ANSWER)

        serving = threading.Thread(target=answer)
        serving.start()
        assert inside.ask(1, base64.b64encode(QUESTION).decode(), 1) == [(HEADERS, END_HEADERS, "iA==")]
        serving.join()
        assert heard(server, 34) == PONGS[1] + PONGS[2]
        server.shutdown(socket.SHUT_WR)
        eventually(lambda: link.end == "end")
