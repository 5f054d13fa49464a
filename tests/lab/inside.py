"""What a test does inside a pod: sockets that are told what to do, one JSON line each, and the loads too quick for that.

Runs in the pod as `python3 -c` of this very text, so standard library only. A line `{"id", "call", "args"}` calls a method of
`Inside` in a thread of its own; the answer is `{"id", "value"}` or `{"id", "error", "text"}`. Bytes travel as Latin-1 text.
"""

import hashlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SO_ORIGINAL_DST = 80
_PIECE = bytes(range(256)) * 1024
_PATIENCE_S = 15
"""Of a load, which is to notice nothing: no longer than that of `Puppet.fate`, which is to be answered."""
_RESET = struct.pack("ii", 1, 0)


class Inside:
    """The sockets of this process by number, and its running loads."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._sockets: dict[int, socket.socket] = {}
        self._loads: dict[int, Load] = {}
        self._poured: dict[int, int] = {}

    def _keep(self, sock: socket.socket) -> int:
        number = next(self._numbers)
        self._sockets[number] = sock
        return number

    def listen(self, port: int, receive_buffer: int = 0) -> int:
        """A dual-stack listener."""
        sock = socket.socket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind(("::", port))
        sock.listen(1024)
        return self._keep(sock)

    def accept(self, listener: int, timeout_s: float) -> int:
        """The next connection of a listener."""
        self._sockets[listener].settimeout(timeout_s)
        return self._keep(self._sockets[listener].accept()[0])

    def connect(self, host: str, port: int, timeout_s: float) -> int:
        """A connection to another pod."""
        return self._keep(socket.create_connection((host, port), timeout_s))

    def send(self, number: int, text: str) -> None:
        """Send all of it."""
        self._sockets[number].sendall(text.encode("latin-1"))

    def receive(self, number: int, size: int, timeout_s: float) -> str:
        """Exactly `size` bytes, or less at the end."""
        sock, data = self._sockets[number], b""
        sock.settimeout(timeout_s)
        while len(data) < size and (piece := sock.recv(size - len(data))):
            data += piece
        return data.decode("latin-1")

    def finish(self, number: int) -> None:
        """Half-close: nothing more will be sent."""
        self._sockets[number].shutdown(socket.SHUT_WR)

    def close(self, number: int, reset: bool) -> None:
        """Close, in order or by a reset."""
        sock = self._sockets.pop(number)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()

    def names(self, number: int) -> dict[str, list[Any] | None]:
        """Both ends as the kernel tells them, and the original destination where there is one."""
        sock = self._sockets[number]
        return {
            "local": list(sock.getsockname()[:2]),
            "peer": list(sock.getpeername()[:2]),
            "original": _original_destination(sock),
        }

    def connect_write_close(self, host: str, port: int, text: str, times: int) -> None:
        """Programs that are gone before anybody looks."""
        for _ in range(times):
            with socket.create_connection((host, port), 60) as sock:
                sock.sendall(text.encode("latin-1"))

    # Bulk

    def pour(self, number: int, size: int) -> str:
        """Send `size` bytes, and say so with a half-close: their SHA-256."""
        sock, checksum, left = self._sockets[number], hashlib.sha256(), size
        sock.settimeout(120)
        while left:
            piece = _PIECE[:left]
            sock.sendall(piece)
            checksum.update(piece)
            left -= len(piece)
            self._poured[number] = size - left
        sock.shutdown(socket.SHUT_WR)
        return checksum.hexdigest()

    def poured(self, number: int) -> int:
        """How far `pour` has come."""
        return self._poured.get(number, 0)

    def drain(self, number: int, rate: int = 0) -> dict[str, Any]:
        """Read to the end, at `rate` bytes a second at most: how much came, and its SHA-256."""
        sock, checksum, size, started = self._sockets[number], hashlib.sha256(), 0, time.monotonic()
        sock.settimeout(120)
        buffer = bytearray(1 << 18)
        while count := sock.recv_into(buffer):
            size += count
            checksum.update(memoryview(buffer)[:count])
            if rate:
                time.sleep(max(0.0, started + size / rate - time.monotonic()))
        return {"size": size, "sha256": checksum.hexdigest()}

    # Loads

    def echo(self, port: int) -> int:
        """Answer everybody with what they send, until stopped: the listener's number."""
        number = self.listen(port)
        threading.Thread(target=_echo_all, args=(self._sockets[number],), daemon=True).start()
        return number

    def crowd(self, host: str, port: int, count: int, size: int) -> dict[str, int]:
        """`count` connections open at once, each with its own `size` bytes there and back: how each ended, by how many."""
        ends = threading.Barrier(count)

        def one(number: int) -> str:
            data = hashlib.sha256(f"{number}".encode()).digest() * (size // 32)
            try:
                with socket.create_connection((host, port), 100) as sock:
                    sock.settimeout(100)
                    sock.sendall(data[:32])
                    _exactly(sock, 32)
                    ends.wait(120)
                    sender = threading.Thread(target=sock.sendall, args=(data,))
                    sender.start()
                    came = _exactly(sock, size)
                    sender.join()
                    return "same" if came == data else "different"
            except (OSError, threading.BrokenBarrierError) as error:
                return repr(error)

        with ThreadPoolExecutor(count) as pool:
            results = list(pool.map(one, range(count)))
        return {result: results.count(result) for result in set(results)}

    def steady(self, host: str, port: int, text: str, renewing: int = 1, lasting: bool = True) -> int:
        """New connections, one after the other in `renewing` threads, and one that stays: the load's number."""
        number = next(self._numbers)
        self._loads[number] = Load(host, port, text.encode("latin-1"), renewing, lasting)
        return number

    def progress(self, number: int) -> dict[str, Any]:
        """What a load has done by now."""
        return self._loads[number].counts()

    def halt(self, number: int) -> dict[str, Any]:
        """End a load: what it has done."""
        return self._loads.pop(number).stop()


class Load:
    """Connections to one place, new ones and one that lasts, with every failure."""

    def __init__(self, host: str, port: int, text: bytes, renewing: int, lasting: bool) -> None:
        self._place, self._text = (host, port), text
        self._counting = threading.Lock()
        self._over = threading.Event()
        self._fresh = self._kept = 0
        self._failures: list[str] = []
        self._threads = [threading.Thread(target=run, daemon=True) for run in [self._renew] * renewing + [self._stay] * lasting]
        for thread in self._threads:
            thread.start()

    def _ask(self, sock: socket.socket) -> None:
        sock.settimeout(_PATIENCE_S)
        sock.sendall(self._text)
        if _exactly(sock, len(self._text)) != self._text:
            raise OSError("another answer")

    def _renew(self) -> None:
        while not self._over.wait(0.005):
            try:
                with socket.create_connection(self._place, _PATIENCE_S) as sock:
                    self._ask(sock)
                with self._counting:
                    self._fresh += 1
            except OSError as error:
                self._failures.append(f"new: {error!r}")

    def _stay(self) -> None:
        try:
            with socket.create_connection(self._place, _PATIENCE_S) as sock:
                while not self._over.wait(0.005):
                    self._ask(sock)
                    self._kept += 1
        except OSError as error:
            self._failures.append(f"lasting: {error!r}")

    def counts(self) -> dict[str, Any]:
        """New connections served, answers on the lasting one, failures."""
        return {"fresh": self._fresh, "kept": self._kept, "failures": self._failures[:20], "failed": len(self._failures)}

    def stop(self) -> dict[str, Any]:
        """End it."""
        self._over.set()
        for thread in self._threads:
            thread.join(3 * _PATIENCE_S)
        return self.counts()


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(1 << 16, size - len(data)))
        if not piece:
            raise OSError(f"ended after {len(data)} bytes of {size}")
        data += piece
    return bytes(data)


def _echo_all(listener: socket.socket) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(sock,), daemon=True).start()


def _echo(sock: socket.socket) -> None:
    with sock:
        try:
            while piece := sock.recv(1 << 16):
                sock.sendall(piece)
        except OSError:
            pass  # the client's end says it


def _original_destination(sock: socket.socket) -> list[Any] | None:
    for level, family, size in ((socket.IPPROTO_IP, socket.AF_INET, 16), (socket.IPPROTO_IPV6, socket.AF_INET6, 28)):
        try:
            raw = sock.getsockopt(level, SO_ORIGINAL_DST, size)
        except OSError:
            continue
        at = 4 if family == socket.AF_INET else 8
        address = socket.inet_ntop(family, raw[at : at + (4 if family == socket.AF_INET else 16)])
        return [address, struct.unpack_from("!H", raw, 2)[0]]
    return None


def main() -> None:
    """Obey until standard input ends."""
    os.setsid()  # as a pod has a group of its own where sessions share the CPU: not the test's, with all other puppets
    inside, writing = Inside(), threading.Lock()
    threading.stack_size(256 * 1024)

    def obey(order: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": order["id"]}
        try:
            answer["value"] = getattr(inside, order["call"])(*order["args"])
        except Exception as error:  # whatever it is, the test must hear it
            answer.update(error=type(error).__name__, text=str(error))
        with writing:
            print(json.dumps(answer), flush=True)

    for line in sys.stdin:
        threading.Thread(target=obey, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
