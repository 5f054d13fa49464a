"""A proxy small enough to see through: speaks ZDS, listens in pods, and answers a captured connection with what it dialled.

Run as a process of its own (its cgroup is its credential): `python scripted_proxy.py ZDS_SOCKET`. Prints a line per event.
"""

import os
import selectors
import socket
import struct
import sys
from contextlib import suppress

from mesh.proto import zds_pb2
from wire.fds import Packet, receive_packet, send_packet
from wire.netns import entered, open_home

PORTS = (15001, 15006, 15008)
_MARK = 0x539
_SO_ORIGINAL_DST = 80


def listen(netns_fd: int, home_fd: int, port: int) -> socket.socket:
    """A dual-stack listener inside a pod."""
    with entered(netns_fd, home_fd):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    sock.listen(64)
    sock.setblocking(False)
    return sock


def original_destination(sock: socket.socket) -> str:
    """Where the app dialled, as an unmodified proxy asks for it."""
    local = sock.getsockname()[0]
    if local.startswith("::ffff:"):
        raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        return f"{socket.inet_ntop(socket.AF_INET, raw[4:8])}:{struct.unpack_from('!H', raw, 2)[0]}"
    raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
    return f"[{socket.inet_ntop(socket.AF_INET6, raw[8:24])}]:{struct.unpack_from('!H', raw, 2)[0]}"


class ScriptedProxy:
    """One ZDS connection after the other, and the listeners of the pods."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._home = open_home()
        self._selector = selectors.DefaultSelector()
        self._pods: dict[str, list[socket.socket]] = {}
        self._zds: socket.socket | None = None

    def run(self) -> None:
        """For ever."""
        while True:
            if self._zds is None:
                self._connect()
            for key, _ in self._selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj is self._zds:
                    self._order()
                elif key.data is None:
                    self._end(key.fileobj)
                elif key.fileobj.fileno() >= 0:  # no order of this very turn closed it
                    self._serve(key.fileobj, key.data)

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(self._path)
            send_packet(sock, bytes.fromhex("0801"))
        except OSError:
            sock.close()
            return
        self._zds = sock
        self._selector.register(sock, selectors.EVENT_READ)
        say("connected")

    def _order(self) -> None:
        assert self._zds is not None
        try:
            packet = receive_packet(self._zds, 1 << 16, 1)
        except ConnectionResetError:
            packet = Packet(b"", [])
        if not packet.data:
            self._selector.unregister(self._zds)
            self._zds.close()
            self._zds = None
            say("disconnected")
            return
        request = zds_pb2.WorkloadRequest.FromString(packet.data)
        kind = request.WhichOneof("payload")
        uid = getattr(getattr(request, kind), "uid", "")
        if kind == "add" and uid not in self._pods:
            self._pods[uid] = [listen(packet.fds[0], self._home, port) for port in PORTS]
            for port, sock in zip(PORTS, self._pods[uid], strict=True):
                self._selector.register(sock, selectors.EVENT_READ, port)
        elif kind == "del":
            for sock in self._pods.pop(uid, []):
                self._selector.unregister(sock)
                sock.close()
        packet.close()
        say(f"{kind} {uid}".strip())
        with suppress(BrokenPipeError, ConnectionResetError):  # an agent that has ended meanwhile: the next look says so
            send_packet(self._zds, bytes.fromhex("0a00"))

    def _serve(self, listener: socket.socket, port: int) -> None:
        sock, _ = listener.accept()
        try:
            answer = original_destination(sock) if port == 15001 else f"inbound {sock.getsockname()[1]}"
            sock.sendall(f"{answer}\n".encode())
        except (FileNotFoundError, ConnectionError):
            # The kernel knows its destination no more, and as weft's own this one lets nobody through; or the app has gone.
            sock.close()
            return
        self._selector.register(sock, selectors.EVENT_READ)

    def _end(self, sock: socket.socket) -> None:
        """An app's connection, which is open until the app ends it."""
        with suppress(ConnectionError):
            if sock.recv(1 << 16):
                return
        self._selector.unregister(sock)
        sock.close()


def say(line: str) -> None:
    """One event for whoever reads the output."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    ScriptedProxy(sys.argv[1]).run()
