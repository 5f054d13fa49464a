"""What a TLS client offers to speak, read from its ClientHello before the handshake. Pure.

Python's `ssl` goes on without a protocol when client and server share none, and does not say afterwards whether the client
had offered any. Source: RFC 8446 sections 4.1.2 and 5.1, RFC 7301 section 3.1.
"""

MAX_HELLO_BYTES = 16 << 10
"""A longer one is OpenSSL's to judge: with every group and suite there is, clients need two."""
NO_APPLICATION_PROTOCOL = bytes((21, 3, 3, 0, 2, 2, 120))
"""A record with the fatal alert."""
_PARTS = 8
"""In how many pieces one may come and still be looked at: reading it again for each byte would cost us dear."""
_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, b"\x01", 16
_OFFERS_OURS_ALONE = bytes((0, _ALPN, 0, 5, 0, 3, 2)) + b"h2"
"""The extension of whoever is meant to come. Who hides it elsewhere is served like one that offers nothing."""
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4


class _Reader:
    """Length-prefixed fields, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("too short")
        self._place += count
        return self._data[self._place - count : self._place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def field(self, size: int) -> bytes:
        return self.take(self.number(size))


def offered_protocols(data: bytes) -> tuple[bytes, ...] | None:
    """The names that a client offers, none when it names none or this is no ClientHello; None: more bytes are needed."""
    message, place = b"", 0
    while place < len(data) and len(message) < _size(message):
        if data[place] != _HANDSHAKE:
            return ()
        start = place + _RECORD_HEADER
        place = start + int.from_bytes(data[start - 2 : start], "big")
        if start >= len(data):
            return None
        message += data[start:place]
        if place == start or message[:1] != _CLIENT_HELLO or _size(message) > MAX_HELLO_BYTES:
            return ()
    if len(message) < _size(message):
        return None
    try:
        return _protocols(_Reader(message[_MESSAGE_HEADER:]))
    except ValueError:
        return ()  # OpenSSL says what is wrong with it


class Hello:
    """One that comes in a few pieces."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.done = False
        """Known, or not looked at any more."""

    def refusal(self, data: bytes | memoryview) -> str:
        """Take a piece in; why the client is refused, who offers protocols but not ours."""
        offered = self._add(data)
        if not offered or b"h2" in offered:
            return ""
        names = ", ".join(ascii(name[:16].decode("latin-1")) for name in offered[:4])
        return f"no common protocol: peer offers {names}, this proxy speaks 'h2'"

    def _add(self, data: bytes | memoryview) -> tuple[bytes, ...] | None:
        self._parts.append(bytes(data))
        if _OFFERS_OURS_ALONE in self._parts[-1]:
            self.done = True
            return (b"h2",)
        offered = offered_protocols(b"".join(self._parts))
        self.done = offered is not None or len(self._parts) == _PARTS
        return offered


def _size(message: bytes) -> int:
    """How long a message will be, as far as is known."""
    return (
        _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
        if len(message) >= _MESSAGE_HEADER
        else _MESSAGE_HEADER
    )


def _protocols(hello: _Reader) -> tuple[bytes, ...]:
    hello.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session, suites, compression
        hello.field(size)
    extensions = _Reader(hello.field(2))
    while extensions.left:
        kind, body = extensions.number(2), extensions.field(2)
        if kind == _ALPN:
            names, found = _Reader(_Reader(body).field(2)), []
            while names.left:
                found.append(names.field(1))
            return tuple(found)
    return ()
