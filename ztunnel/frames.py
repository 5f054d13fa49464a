"""HTTP/2 frames as far as HBONE needs them: numbers, headers, settings, and the fixed bytes that both ends open with.

Source: RFC 9113 sections 4, 6, 7. The sizes and the order of settings are those of Istio's ztunnel, byte for byte.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20

HEADER_BYTES = 9
header = struct.Struct(">LBL")
"""Length << 8 | type, flags, stream."""
_u32 = struct.Struct(">L")
_setting = struct.Struct(">HL")

DEFAULT_WINDOW = 65535
MAX_WINDOW = 2**31 - 1
MIN_MAX_FRAME_BYTES = 16384
"""What every peer accepts before it says more."""
LARGEST_FRAME_BYTES = (1 << 24) - 1
SEND_FRAME_BYTES = (256 << 10) - HEADER_BYTES
"""Largest payload that we send: small streams interleave, and header plus payload fill whole TLS records."""
_RECORD_BYTES, _RECORD_ADDS = 16384, 22
"""Of TLS 1.3: plaintext, and what comes on top."""
_PACKET_BYTES = 65_200
"""Linux hands on as many whole segments at once as fit in 64 KiB, less its room for headers (sk_setup_caps)."""
BULK_FRAME_BYTES = 8192
"""DATA frames from here on are bulk: not worth copying into a turn's write, and what waits behind them is late."""
SERVER_STREAMS = 200
CLIENT_STREAMS = 100
"""What a client takes for granted until the server has said how many."""
SERVER_HEADER_BYTES = 64 << 10
CLIENT_HEADER_BYTES = 16 << 10
HPACK_TABLE_BYTES = 4096
MAX_STREAM_ID = 2**31 - 1

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING_PAYLOAD = bytes.fromhex("3b7cdb7a0b8716b4")
"""Keep-alive."""
DRAIN_PAYLOAD = bytes.fromhex("0b7ba2f08b9bfe54")
"""Between the two GOAWAYs of a graceful shutdown."""


class Code(IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


def code_name(code: int) -> str:
    """The name of an error code, or its number."""
    return Code(code).name if code in Code._value2member_map_ else str(code)


class Setting(IntEnum):
    """Numbers of settings."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ProtocolError(Exception):
    """The peer broke the protocol or its budget; the connection ends with this code."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return header.pack(len(payload) << 8 | kind, flags, stream_id) + payload


@lru_cache(64)
def payload_in_whole_packets(segment_bytes: int) -> int:
    """Largest payload that we send where TCP's segments are so long: sealed, the frame fills whole packets.

    What is left over by a send would leave at once as a packet of its own, and costs the way as much as one of 64 KiB.
    """
    packet_bytes = max(1, _PACKET_BYTES // segment_bytes) * segment_bytes
    record = _RECORD_BYTES + _RECORD_ADDS
    sealed_bytes = (HEADER_BYTES + SEND_FRAME_BYTES) // _RECORD_BYTES * record // packet_bytes * packet_bytes
    return sealed_bytes - -(-sealed_bytes // record) * _RECORD_ADDS - HEADER_BYTES


def settings(pairs: list[tuple[int, int]]) -> bytes:
    """A SETTINGS frame, in the given order."""
    return frame(SETTINGS, 0, 0, b"".join(_setting.pack(*pair) for pair in pairs))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, _u32.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _u32.pack(code))


def goaway(last_stream_id: int, code: int) -> bytes:
    """A GOAWAY frame without debug data."""
    return frame(GOAWAY, 0, 0, _u32.pack(last_stream_id) + _u32.pack(code))


def read_u32(payload: bytes, offset: int = 0) -> int:
    """A 31-bit number: the reserved bit is ignored, as the RFC says."""
    number: int = _u32.unpack_from(payload, offset)[0]
    return number & MAX_WINDOW


def read_code(payload: bytes, offset: int = 0) -> int:
    """A 32-bit error code."""
    number: int = _u32.unpack_from(payload, offset)[0]
    return number


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of a SETTINGS payload; unknown numbers are left out.

    Raises: ProtocolError for a payload or a value outside RFC 9113 section 6.5.2.
    """
    if len(payload) % _setting.size:
        raise ProtocolError(Code.FRAME_SIZE_ERROR, "SETTINGS length is not a multiple of 6")
    pairs = []
    for number, value in _setting.iter_unpack(payload):
        if number == Setting.ENABLE_PUSH and value > 1:
            raise ProtocolError(Code.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        if number == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ProtocolError(Code.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        if number == Setting.MAX_FRAME_SIZE and not MIN_MAX_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
            raise ProtocolError(Code.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
        if number in Setting._value2member_map_:
            pairs.append((number, value))
    return pairs


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What we let peers send, in bytes."""

    stream_window: int = 4 << 20
    connection_window: int = 16 << 20
    frame: int = 1 << 20


@lru_cache(8)
def opening(server: bool, sizes: Sizes) -> bytes:
    """What an end says first."""
    own = (Setting.MAX_CONCURRENT_STREAMS, SERVER_STREAMS) if server else (Setting.ENABLE_PUSH, 0)
    pairs: list[tuple[int, int]] = [
        own,
        (Setting.INITIAL_WINDOW_SIZE, sizes.stream_window),
        (Setting.MAX_FRAME_SIZE, sizes.frame),
        (Setting.MAX_HEADER_LIST_SIZE, SERVER_HEADER_BYTES if server else CLIENT_HEADER_BYTES),
    ]
    wider = sizes.connection_window - DEFAULT_WINDOW
    return (b"" if server else PREFACE) + settings(pairs) + (window_update(0, wider) if wider else b"")


SIZES = Sizes()
CLIENT_OPENING, SERVER_OPENING = opening(False, SIZES), opening(True, SIZES)
"""As they are unless an operator sets other sizes."""
