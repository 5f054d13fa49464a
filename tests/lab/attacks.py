"""The attacks that a pod with a valid certificate can try on a neighbour's proxy, as words to say again and again."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.ztunnel.test_http2 import hostile
from ztunnel import frames
from ztunnel.fields import literal
from ztunnel.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    Code,
    frame,
    rst_stream,
    settings,
    window_update,
)

CALM, PROTOCOL, FLOW, SIZE = Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR, Code.FLOW_CONTROL_ERROR, Code.FRAME_SIZE_ERROR
TAKEN = frozenset({"stream overflow"})
"""No violation where the application takes what comes."""
_SIDS = range(1, 8001, 2)
_MANY_SIDS = range(1, 32001, 2)
"""Of streams whose answers are what is too much: of these some are allowed again each second, and a worker may be slow."""
_BOMB = b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 9000


@dataclass(frozen=True, slots=True)
class Attack:
    """What is said after the connection's opening, over and over or each in turn, and how the victim answers."""

    name: str
    words: Sequence[bytes]
    codes: frozenset[Code | None] = frozenset({CALM})
    """Of the GOAWAY that ends it; None: none, as the connection ended below HTTP/2, or a reset overtook it."""
    begin: bytes = b""
    """Said once, before the words."""
    repeat: int = 1
    read: bool = True
    opening: bool = True
    """After the preface of an honest client; else instead of it."""
    tls: bool = True


@dataclass(frozen=True, slots=True)
class Crowd:
    """Connections that are held: `silent`, with a `half` handshake, `shaken` hands and no word after it, or `idle` HTTP/2."""

    name: str
    manner: str
    count: int
    ends: bool = field(default=True)
    """Whether the victim shows all of them out within its time for handshakes."""


@dataclass(frozen=True, slots=True)
class Beneath:
    """A peer with a certificate, beneath HTTP/2: see tests.lab.attacker.Inside.undermine."""

    name: str
    manner: str


@dataclass(frozen=True, slots=True)
class Storm:
    """A peer with a certificate whose streams come and go, each begun by the next of the blocks: see
    tests.lab.attacker.Inside.storm."""

    name: str
    manner: str
    blocks: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Flood:
    """A pod of the victim's node (`near`), or of another one, without TLS: see tests.lab.attacker.Inside.flood."""

    name: str
    manner: str
    near: bool
    port: int = 0
    """None: that of the application which attackers may reach."""
    words: Sequence[bytes] = (b"",)
    of_node: bool = False
    """It goes to the node's address, not to the pod's."""
    within: bool = False
    """It goes to the attacker's own loopback address, past the mesh."""


def _streams(block: bytes, end: Callable[[int], bytes] = lambda _: b"", sids: Sequence[int] = _SIDS) -> bytes:
    return b"".join(frame(HEADERS, END_HEADERS, sid, block) + end(sid) for sid in sids)


def _noise(block: bytes, seed: int) -> bytes:
    """Frames of random kinds, flags, streams and payloads; some of them make sense."""
    chance = random.Random(seed)
    said = bytearray(frame(HEADERS, END_HEADERS, 1, block))
    for _ in range(200):
        payload = chance.choice((b"", bytes(4), bytes(8), block, chance.randbytes(chance.randrange(60))))
        said += frame(chance.randrange(12), chance.getrandbits(8) & chance.getrandbits(8), chance.randrange(12), payload)
    return bytes(said)


def attacks(block: bytes, refused: bytes, unread: bytes, nobody: bytes) -> list[Attack]:
    """All of them. Requests: `block` is accepted, `refused` is not, `unread` leads to an application that does not read,
    `nobody` to a port where none listens."""
    start = frame(HEADERS, END_HEADERS, 1, block)
    deaf = frame(HEADERS, END_HEADERS, 1, unread)
    bulk = frame(DATA, 0, 1, bytes(16 << 10))
    floods = {
        "PING": frame(PING, 0, 0, bytes(8)) * 100,
        "SETTINGS": settings([(3, 1)]) * 100,
        "PRIORITY": frame(PRIORITY, 0, 1, bytes(5)) * 100,
        "unknown frames": frame(0xBB, 0, 0, b"x") * 100,
        "header bombs": frame(HEADERS, END_HEADERS, 1, _BOMB),
    }
    endless = [
        Attack(f"{name}, {'read' if read else 'unread'}", (words,), repeat=100_000, read=read)
        for name, words in floods.items()
        for read in (True, False)
    ]
    cut = frozenset({FLOW, None})
    drained = frozenset({CALM, Code.NO_ERROR})  # of the drain that comes first, where a reset overtook the rest
    oversized = (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", b"\x11\x00\x00\xbb\x00\x00\x00\x00\x00")
    odd = frame(HEADERS, END_HEADERS, 5, block) + frame(HEADERS, END_HEADERS, 3, block)
    bad_ids = [*(frame(HEADERS, END_HEADERS, sid, block) for sid in (0, 2)), frame(DATA, 0, 9, b"x"), rst_stream(7, 0), odd]
    no_tls = (b"GET / HTTP/1.1\r\n\r\n", bytes(4096), b"\x16\x03\x01\xff\xff" + b"\xaa" * 70000)
    no_http2 = (b"GET / HTTP/1.1\r\nHost: far\r\n\r\n", bytes(1 << 16), b"\xff" * (1 << 16))
    return [
        *endless,
        Attack("rapid reset", (_streams(block, lambda sid: rst_stream(sid, Code.CANCEL)),)),
        Attack("CONTINUATION flood", (frame(HEADERS, 0, 1, block) + frame(CONTINUATION, 0, 1, b"") * 4000,)),
        Attack("CONTINUATION bytes", (frame(HEADERS, 0, 1, block) + frame(CONTINUATION, 0, 1, bytes(16000)) * 16,)),
        Attack("stream flood", (_streams(block),)),
        Attack("refused stream flood", (_streams(refused, sids=_MANY_SIDS),), drained),
        Attack("stream flood, nobody listens", (_streams(nobody, sids=_MANY_SIDS),), drained),
        Attack("empty DATA flood", [frame(DATA, 0, 1) * 100], begin=start, repeat=100_000),
        Attack("header lists of 64 KiB", (_streams(block + _BOMB[:4005] + b"\xbe" * 15)[: 8 << 20],)),
        Attack("window overflow", (window_update(0, 0x7FFFFFFF) * 2, start + window_update(1, 0x7FFFFFFF)), frozenset({FLOW})),
        Attack("oversized frames", [head + bytes(1 << 16) for head in oversized], frozenset({SIZE, PROTOCOL})),
        Attack("bad stream ids", bad_ids, frozenset({PROTOCOL, Code.STREAM_CLOSED})),
        Attack("ignores flow control", [bulk * 16], cut, start, 256, read=False),
        Attack("ignores flow control, application deaf", [bulk * 16], cut, deaf, 256, read=False),
        Attack("takes nothing", [bulk * 16], cut, settings([(4, 0)]) + start, 256, read=False),
        Attack("garbage before the handshake", no_tls, frozenset({None}), opening=False, tls=False),
        Attack("garbage after the handshake", no_http2, frozenset({PROTOCOL}), opening=False),
        Attack("frame fuzzer", tuple(_noise(block, seed) for seed in range(200)), frozenset({*Code, None})),
        Attack("every violation", tuple(words for name, words, _ in hostile(block, 10) if name not in TAKEN), frozenset(Code)),
    ]


CROWDS = (
    Crowd("3,000 silent connections", "silent", 3000),
    Crowd("3,000 half handshakes", "half", 3000),
    Crowd("800 TLS connections that say nothing", "shaken", 800),
    Crowd("800 idle HTTP/2 connections", "idle", 800, ends=False),
)


BENEATH = (
    Beneath("KeyUpdates", "keys"),
    Beneath("records of one byte", "records"),
    Beneath("handshakes, closed at once", "greetings"),
    Beneath("60 tunnels of small DATA", "tunnels"),
)


def storms(block: bytes, unread: bytes, refused: bytes) -> list[Storm]:
    """Requests: see `attacks`."""
    described = [
        block
        + literal(b"baggage", f"k8s.deployment.name=w{number},service.name=s{number},".encode() + b"x" * 1900)
        + literal(b"forwarded", f"for=10.0.0.1:1;host=h{number}.".encode() + b"y" * 1500)
        for number in range(300)
    ]
    return [
        Storm("streams reset when they are answered", "answered", [block]),
        Storm("half-closed streams", "halves", [block]),
        Storm("streams that describe themselves anew", "halves", described),
        Storm("refused streams, on tunnels that are left when it is asked to", "halves", [refused]),
        Storm("60 tunnels full of what nobody reads", "fill", [unread]),
    ]


def question(name: str) -> bytes:
    """A DNS message that asks for an IPv4 address."""
    labels = b"".join(bytes((len(one),)) + one.encode() for one in name.split("."))
    return b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


_KNOWN, _UNKNOWN = question("far.shop.svc.cluster.local"), [question(f"nobody{number}.example.com") for number in range(500)]
FLOODS = (
    Flood("UDP to nobody: what the CPU alone does", "datagrams", True, 9, (_KNOWN,)),
    Flood("connections to nobody: what the CPU alone does", "closes", True, 9, within=True),
    Flood("DNS, names of the mesh", "datagrams", True, 53, (_KNOWN,)),
    Flood("DNS, names of nobody", "datagrams", True, 53, _UNKNOWN),
    Flood("DNS over TCP, pipelined", "streams", True, 53, (_framed(_KNOWN) * 200,)),
    Flood(
        "the metrics port",
        "asks",
        False,
        15020,
        (b"GET /metrics HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n",),
        of_node=True,
    ),
    Flood("the metrics port, slowly", "drips", False, 15020, (b"GET /metrics HTTP/1.1\r\n",), of_node=True),
    Flood("15008, closed at once", "closes", False, 15008),
    Flood("15008, one byte and closed", "says", False, 15008, (b"\x16",)),
    Flood("a pod's own connections, closed at once", "closes", True),
    Flood("a pod's own connections, 400 at a time", "bursts", True),
)


def connect(authority: str) -> bytes:
    """A request."""
    return literal(b":method", b"CONNECT") + literal(b":authority", authority.encode())


def goaway_code(said: bytes) -> int | None:
    """The code of the last GOAWAY in what a server said."""
    place, code = 0, None
    while place + 9 <= len(said):
        length = int.from_bytes(said[place : place + 3], "big")
        if said[place + 3] == GOAWAY:
            code = frames.read_code(said, place + 13)
        place += 9 + length
    return code
