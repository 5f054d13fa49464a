"""A hostile peer: what a test makes it say to a proxy, from inside a pod, and the honest one that works beside it.

Runs in the pod as `python3 -c` of this very text, like tests.lab.inside and by the same lines, so standard library only; the
frames come from the test. TLS runs on memory buffers: a peer that cuts an attacker off in the middle of a word has often said
why, and ssl.SSLSocket could not read that any more. Bytes travel as base64.
"""

import base64
import itertools
import json
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_CHUNK = 1 << 16
_KEPT = 1 << 20
_HEADERS, _RST_STREAM, _PING = 1, 3, 6
Papers = dict[str, Any]
"""`chain` and `key` as PEM (none: no certificate), `alpn`, `version`: of TLS. None in place of all: no TLS."""


class Link:
    """One TCP connection and the TLS on it, driven by `exchange`; keeps what the other end says."""

    def __init__(self, sock: socket.socket, papers: Papers | None, server: bool = False) -> None:
        self.sock = sock
        self.said = b""
        self.sent = 0
        self.last = b""
        """What came last, as it was on the wire: an alert before encryption has seven bytes."""
        self.end = ""
        sock.setblocking(False)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context(papers, server).wrap_bio(self._incoming, self._outgoing, server) if papers else None
        self.greeted = self._tls is None
        self._cipher = b""
        self._writable = True

    def exchange(self, data: bytes, repeat: int, read: bool, enough: Callable[[], bool], timeout_s: float) -> None:
        """Send `data` `repeat` times, and listen until the end or until it is enough; unless `read`, only after all is sent."""
        until = time.monotonic() + timeout_s
        whole, place = memoryview(data), 0
        self._greet()
        while not self.end and not enough():
            if self.greeted and not self._cipher and repeat:
                self._encrypt(bytes(whole[place : place + _CHUNK]))
                place += _CHUNK
                if place >= len(whole):
                    repeat, place = repeat - 1, 0
            if not self._writable:
                repeat, self._cipher = 0, b""
            sending = bool(repeat or self._cipher)
            listening = read or not sending or not self.greeted
            left = until - time.monotonic()
            ready = select.select([self.sock] if listening else [], [self.sock] if self._cipher else [], [], max(0.0, left))
            if not any(ready):
                if left <= 0:
                    self.end = "silent"
                continue
            if ready[1]:
                self._send()
            if ready[0]:
                self._receive()

    def _greet(self) -> None:
        if not self.greeted and self._tls is not None:
            try:
                self._tls.do_handshake()
                self.greeted = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self.end = f"alert {error.reason}"
            self._cipher += self._outgoing.read()
            if self.end and self._cipher:
                self._send()  # our own alert

    def _encrypt(self, data: bytes) -> None:
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        self._cipher += data

    def _send(self) -> None:
        try:
            count = self.sock.send(self._cipher)
        except BlockingIOError:
            return
        except OSError:
            self._writable = False  # what was said before is still to be read
            return
        self.sent += count
        self._cipher = self._cipher[count:]

    def _receive(self) -> None:
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            self.end = "reset"
            return
        if self._tls is None:
            self._keep(data)
        else:
            self.last = data[-7:] or self.last
            self._incoming.write(data)
            self._decrypt()
        if not data and not self.end:
            self.end = "end" if self._writable else "reset"  # which sending has heard of already

    def _decrypt(self) -> None:
        self._greet()
        assert self._tls is not None
        try:
            while self.greeted and self._incoming.pending:
                self._keep(self._tls.read(1 << 18))
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.end = self.end or f"alert {error.reason}"

    def _keep(self, data: bytes) -> None:
        self.said = (self.said + data)[-_KEPT:]

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Every whole HTTP/2 frame that was said: type, flags, stream, payload; what is left over stays."""
        found = []
        while len(self.said) >= 9 and len(self.said) >= 9 + (length := int.from_bytes(self.said[:3], "big")):
            sid = int.from_bytes(self.said[5:9], "big")
            found.append((self.said[3], self.said[4], sid, self.said[9 : 9 + length]))
            self.said = self.said[9 + length :]
        return found


class Inside:
    """The attacker's links by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._links: dict[int, Link] = {}
        self._crowds: dict[int, list[socket.socket]] = {}
        self._witnesses: dict[int, Witness] = {}
        self._listeners: dict[int, socket.socket] = {}

    def speak(
        self, host: str, port: int, papers: Papers | None, data: str, repeat: int = 1, read: bool = True, timeout_s: float = 20
    ) -> dict[str, Any]:
        """Connect, say it all, listen until the end: what was said, how it ended, what came last, bytes sent."""
        with socket.create_connection((host, port), 10) as sock:
            link = Link(sock, papers)
            link.exchange(base64.b64decode(data), repeat, read, lambda: False, timeout_s)
            return _report(link)

    def open(self, host: str, port: int, papers: Papers, data: str) -> int:
        """A connection that stays, after first words: its number."""
        link = Link(socket.create_connection((host, port), 10), papers)
        link.exchange(base64.b64decode(data), 1, True, lambda: link.sent > 0 and len(link.said) > 0, 10)
        number = next(self._numbers)
        self._links[number] = link
        return number

    def ask(self, number: int, data: str, sid: int) -> list[tuple[int, int, str]]:
        """Say something on a connection that stays; type, flags and payload of the frames on stream `sid` that answer."""
        link, found = self._links[number], []

        def answered() -> bool:
            found.extend([one for one in link.frames() if one[2] == sid])
            return any(one[0] in (_HEADERS, _RST_STREAM) for one in found)

        link.exchange(base64.b64decode(data), 1, True, answered, 10)
        if not found:
            raise RuntimeError(f"no answer on stream {sid}: {link.end}")
        return [(kind, flags, _text(payload)) for kind, flags, _, payload in found]

    def insist(self, number: int, data: str, repeat: int, read: bool, timeout_s: float) -> dict[str, Any]:
        """Say something again and again on a connection that stays, until it does not any more: see `speak`."""
        link = self._links.pop(number)
        with link.sock:
            link.exchange(base64.b64decode(data), repeat, read, lambda: False, timeout_s)
            return _report(link)

    def close(self, number: int) -> None:
        """End a connection that stays."""
        self._links.pop(number).sock.close()

    # Crowds

    def crowd(self, host: str, port: int, count: int, greet: bool) -> int:
        """Connections that say nothing, or (with `greet`) begin a handshake and leave it at that: the crowd's number."""
        number = next(self._numbers)
        self._crowds[number] = []
        for _ in range(count):
            sock = socket.create_connection((host, port), 10)
            self._crowds[number].append(sock)
            if greet:
                link = Link(sock, {})
                link._greet()
                link._send()
        return number

    def cut(self, number: int) -> int:
        """How many of a crowd have been cut off by the other end."""
        poll = select.poll()
        for sock in self._crowds[number]:
            poll.register(sock, select.POLLRDHUP)
        return len(poll.poll(0))

    def disperse(self, number: int) -> None:
        """Let a crowd go."""
        for sock in self._crowds.pop(number):
            sock.close()

    # A false server

    def pose(self, port: int) -> int:
        """Listen in somebody else's place: the listener's number."""
        sock = socket.create_server(("", port), backlog=64)
        number = next(self._numbers)
        self._listeners[number] = sock
        return number

    def visit(self, number: int, papers: Papers | None, answer: str, timeout_s: float = 15) -> dict[str, Any]:
        """Serve one visitor with these papers, answering with `answer`, and hear it to the end."""
        listener = self._listeners[number]
        listener.settimeout(timeout_s)
        sock, _ = listener.accept()
        with sock:
            link = Link(sock, papers, server=True)
            link.exchange(base64.b64decode(answer), 1, True, lambda: False, timeout_s)
            return _report(link)

    def unpose(self, number: int) -> None:
        """Stop listening."""
        self._listeners.pop(number).close()

    # The honest neighbour

    def watch(self, host: str, port: int, papers: Papers, opening: str, block: str) -> int:
        """Use the victim's service as a good peer, until `verdict`: the witness's number."""
        number = next(self._numbers)
        self._witnesses[number] = Witness(host, port, papers, base64.b64decode(opening), base64.b64decode(block))
        return number

    def verdict(self, number: int) -> dict[str, Any]:
        """What a witness saw."""
        return self._witnesses.pop(number).stop()

    def dial(self, host: str, port: int, mark: int, text: str, timeout_s: float) -> str:
        """A plain connection with a mark on its socket: `refused`, `reset`, `end`, `silent`, or what was answered."""
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.settimeout(timeout_s)
            try:
                sock.connect((host, port))
                sock.sendall(text.encode())
                return sock.recv(100).decode() or "end"
            except ConnectionRefusedError:
                return "refused"
            except (ConnectionResetError, BrokenPipeError):
                return "reset"
            except TimeoutError:
                return "silent"


class Witness:
    """Streams on a connection that stays, one every 10 ms, and a whole new connection every 150 ms."""

    def __init__(self, host: str, port: int, papers: Papers, opening: bytes, block: bytes) -> None:
        self._place, self._papers, self._opening, self._block = (host, port), papers, opening, block
        self._over = threading.Event()
        self._failures: list[str] = []
        self._times: dict[str, list[float]] = {"stream": [], "connection": []}
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._stay, self._renew)]
        for thread in self._threads:
            thread.start()

    def _connect(self) -> Link:
        return Link(socket.create_connection(self._place, 10), self._papers)

    def _once(self, link: Link, sid: int, first: bool) -> None:
        """One stream: CONNECT, `ping`, its echo, both ends."""
        begin = b"" if not first else self._opening
        head = len(self._block).to_bytes(3, "big") + b"\1\4" + sid.to_bytes(4, "big") + self._block
        data = b"\0\0\4\0\1" + sid.to_bytes(4, "big") + b"ping"
        status, echo, ended, pings = b"", b"", False, b""

        def answered() -> bool:
            nonlocal status, echo, ended, pings
            for kind, flags, stream, payload in link.frames():
                if kind == _PING and not flags & 1:
                    pings += b"\0\0\x08\6\1\0\0\0\0" + payload
                elif stream == sid and kind == _HEADERS:
                    status = payload[:1]
                    ended = ended or bool(flags & 1)
                elif stream == sid and kind == 0:
                    echo += payload
                    ended = ended or bool(flags & 1)
                elif stream == sid and kind == _RST_STREAM:
                    ended = True
            return ended

        link.exchange(begin + head + data, 1, True, answered, 10)
        if pings:
            link.exchange(pings, 1, True, lambda: not link._cipher, 10)
        if (status, echo) != (b"\x88", b"ping"):
            raise OSError(f"stream {sid}: status {status!r}, echo {echo!r}, {link.end or 'ended'}")

    def _timed(self, what: str, act: Callable[[], None]) -> None:
        began = time.monotonic()
        act()
        self._times[what].append(time.monotonic() - began)

    def _stay(self) -> None:
        try:
            link = self._connect()
            for sid in itertools.count(1, 2):
                self._timed("stream", lambda sid=sid: self._once(link, sid, sid == 1))  # type: ignore[misc]
                if self._over.wait(0.01):
                    break
            link.sock.close()
        except (OSError, ssl.SSLError) as error:
            self._failures.append(f"standing: {error!r}")

    def _renew(self) -> None:
        while not self._over.wait(0.15):
            try:
                self._timed("connection", self._fresh)
            except (OSError, ssl.SSLError) as error:
                self._failures.append(f"new: {error!r}")

    def _fresh(self) -> None:
        link = self._connect()
        try:
            self._once(link, 1, True)
        finally:
            link.sock.close()

    def stop(self) -> dict[str, Any]:
        """End it: failures, counts, and milliseconds of the median and the 99th percentile."""
        self._over.set()
        for thread in self._threads:
            thread.join(15)
        result: dict[str, Any] = {"failures": self._failures[:20]}
        for what, times in self._times.items():
            ranked = sorted(times) or [0.0]
            result[what] = {
                "count": len(times),
                "p50_ms": round(1000 * ranked[len(ranked) // 2], 2),
                "p99_ms": round(1000 * ranked[len(ranked) * 99 // 100], 2),
            }
        return result


def _context(papers: Papers, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if not server:
        context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if papers.get("version"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[papers["version"]]
    if papers.get("alpn"):
        context.set_alpn_protocols(papers["alpn"])
    if papers.get("chain"):
        fd = os.memfd_create("papers")
        try:
            os.write(fd, (papers["chain"] + papers["key"]).encode())
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    return context


def _report(link: Link) -> dict[str, Any]:
    return {"said": _text(link.said), "end": link.end, "last": _text(link.last), "sent": link.sent}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    """Obey until standard input ends."""
    inside, writing = Inside(), threading.Lock()

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
