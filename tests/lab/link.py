"""One TCP connection of an attacker in a pod, and the TLS on it. Standard library only: see tests.lab.attacker.

TLS runs on memory buffers: a peer that cuts an attacker off in the middle of a word has often said why, and ssl.SSLSocket could
not read that any more.
"""

import ctypes
import json
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

_CHUNK = 1 << 16
_KEPT = 1 << 20
_contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
Frame = tuple[int, int, int, bytes]
"""Of HTTP/2: type, flags, stream, payload."""
Papers = dict[str, Any]
"""`chain` and `key` as PEM (none: no certificate), `alpn`, `version`: of TLS. None in place of all: no TLS."""


class Link:
    """One TCP connection and the TLS on it, driven by `exchange`; keeps what the other end says."""

    def __init__(self, sock: socket.socket, papers: Papers | None, server: bool = False) -> None:
        self.sock = sock
        self.port = sock.getsockname()[1]
        self.said = b""
        self.sent = 0
        self.last = b""
        """What came last, as it was on the wire: an alert before encryption has seven bytes."""
        self.end = ""
        sock.setblocking(False)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = (
            _papers_context(papers, server).wrap_bio(self._incoming, self._outgoing, server) if papers is not None else None
        )
        self.greeted = self._tls is None
        self._cipher = b""
        self._writable = True

    @property
    def sending(self) -> bool:
        """Whether something waits to leave."""
        return bool(self._cipher)

    def begin(self) -> None:
        """Send the first message of a handshake, and leave it at that."""
        self._greet()
        self._send()

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
                self.receive()

    def update_keys(self, count: int) -> bytes:
        """So many KeyUpdates that want an answer, as they go on the wire. By OpenSSL's own call: `ssl` has none."""
        assert self._tls is not None
        library = ctypes.PyDLL(ssl._ssl.__file__)  # type: ignore[attr-defined]
        own = self._tls._sslobj  # type: ignore[attr-defined]
        behind_socket = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # where _ssl._SSLSocket has its SSL
        connection = ctypes.c_void_p.from_address(id(own) + behind_socket)
        for _ in range(count):
            library.SSL_key_update(connection, 1)
            library.SSL_do_handshake(connection)
        return self._outgoing.read()

    def records(self, data: bytes) -> bytes:
        """Each byte in a record of its own, as they go on the wire."""
        assert self._tls is not None
        for place in range(len(data)):
            self._tls.write(data[place : place + 1])
        return self._outgoing.read()

    def pour(self, make: Callable[[], bytes], until: float) -> None:
        """Send what is made again and again, reading meanwhile, until the end."""
        while not self.end and self._writable and time.monotonic() < until:
            if not self._cipher:
                self._cipher = make()
            ready = select.select([self.sock], [self.sock], [], 1)
            if ready[1]:
                self._send()
            if ready[0]:
                self.receive()
        self.end = self.end or ("silent" if self._writable else "reset")

    def offer(self, data: bytes) -> None:
        """Send some of it, unless something waits already, and read what is there."""
        if self._writable and not self._cipher:
            self._encrypt(data)
        if self._cipher:
            self._send()
        self.receive()
        if not self._writable:
            self.end = self.end or "reset"

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

    def receive(self) -> None:
        """Read what is there, and wait for nothing."""
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

    def frames(self) -> list[Frame]:
        """Every whole one that was said; what is left over stays."""
        found = []
        while len(self.said) >= 9 and len(self.said) >= 9 + (length := int.from_bytes(self.said[:3], "big")):
            sid = int.from_bytes(self.said[5:9], "big")
            found.append((self.said[3], self.said[4], sid, self.said[9 : 9 + length]))
            self.said = self.said[9 + length :]
        return found


def _papers_context(papers: Papers, server: bool) -> ssl.SSLContext:
    key = (json.dumps(papers, sort_keys=True), server)
    if key not in _contexts:
        _contexts[key] = _new_context(papers, server)
    return _contexts[key]


def _new_context(papers: Papers, server: bool) -> ssl.SSLContext:
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
