"""The fixed bytes of HBONE, as recorded from Istio's ztunnel, and settings that no peer may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel import frames
from ztunnel.frames import Code, ProtocolError

pytestmark = pytest.mark.unit


def test_both_ends_open_with_the_recorded_bytes() -> None:
    preface = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a"
    client = "000018040000000000000200000000000400400000000500100000000600004000"
    server = "0000180400000000000003000000c8000400400000000500100000000600010000"
    window = "00000408000000000000ff0001"
    assert frames.CLIENT_OPENING.hex() == preface + client + window
    assert frames.SERVER_OPENING.hex() == server + window
    assert frames.SETTINGS_ACK.hex() == "000000040100000000"


@pytest.mark.parametrize("server", [True, False])
def test_an_operators_sizes_are_what_an_end_opens_with(server: bool) -> None:
    said = frames.opening(server, frames.Sizes(stream_window=1 << 20, connection_window=2 << 20, frame=32768))
    assert "000400100000000500008000" in said.hex() and said.endswith(frames.window_update(0, (2 << 20) - 65535))
    usual = frames.opening(server, frames.Sizes(connection_window=65535))
    assert usual + frames.window_update(0, (16 << 20) - 65535) == frames.opening(server, frames.SIZES), "no update of 0"


def test_keep_alive_and_shutdown_frames() -> None:
    assert frames.frame(frames.PING, 0, 0, frames.PING_PAYLOAD).hex() == "0000080600000000003b7cdb7a0b8716b4"
    assert frames.frame(frames.PING, 0, 0, frames.DRAIN_PAYLOAD).hex() == "0000080600000000000b7ba2f08b9bfe54"
    assert frames.goaway(frames.MAX_STREAM_ID, Code.NO_ERROR).hex() == "0000080700000000007fffffff00000000"
    assert frames.rst_stream(3, Code.CANCEL).hex() == "00000403000000000300000008"


def test_the_reserved_bit_is_ignored_and_no_part_of_a_code() -> None:
    payload = bytes.fromhex("80000007ffffffff")
    assert (frames.read_u32(payload), frames.read_u32(payload, 4)) == (7, 2**31 - 1)
    assert (frames.read_code(payload), frames.read_code(payload, 4)) == (0x80000007, 0xFFFFFFFF)


def test_a_code_is_called_by_its_name_where_it_has_one() -> None:
    rfc = """NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR
        REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM 12 13 14"""
    assert [frames.code_name(code) for code in range(15)] == rfc.split()


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("0004", Code.FRAME_SIZE_ERROR),
        ("000200000002", Code.PROTOCOL_ERROR),
        ("000480000000", Code.FLOW_CONTROL_ERROR),
        ("000500003fff", Code.PROTOCOL_ERROR),
        ("000501000000", Code.PROTOCOL_ERROR),
    ],
)
def test_settings_outside_the_rfc_end_the_connection(payload: str, code: Code) -> None:
    with pytest.raises(ProtocolError) as failure:
        frames.read_settings(bytes.fromhex(payload))
    assert failure.value.code is code


def test_settings_as_far_as_the_rfc_lets_them_go_are_taken() -> None:
    pairs = [(2, 0), (2, 1), (4, 0), (4, 2**31 - 1), (5, 1 << 14), (5, (1 << 24) - 1), (1, 2**32 - 1), (3, 0), (6, 0)]
    assert frames.read_settings(frames.settings(pairs)[frames.HEADER_BYTES :]) == pairs


def test_unknown_settings_are_ignored() -> None:
    assert frames.read_settings(bytes.fromhex("00f100000001000300000007")) == [(3, 7)]


@given(st.binary(max_size=60))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    try:
        pairs = frames.read_settings(payload)
    except ProtocolError:
        return
    assert len(pairs) <= len(payload) // 6


@given(st.integers(48, 65535))
def test_a_frame_of_bulk_fills_whole_packets(segment_bytes: int) -> None:
    payload = frames.payload_in_whole_packets(segment_bytes)
    records = -(-(frames.HEADER_BYTES + payload) // 16384)
    sealed = frames.HEADER_BYTES + payload + 22 * records
    packet = max(1, 65_200 // segment_bytes) * segment_bytes
    assert -sealed % packet <= 22, "as good as nothing is left over; a record has a byte at least"
    assert frames.SEND_FRAME_BYTES - packet - 22 <= payload <= frames.SEND_FRAME_BYTES
