"""What clients offer, read from the ClientHello that OpenSSL makes, whole, cut into records, and damaged."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.client_hello import offered_protocols

pytestmark = pytest.mark.unit


def hello(*protocols: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


USUAL = hello("h2", "http/1.1")


def test_names_in_their_order_or_none() -> None:
    assert offered_protocols(USUAL) == (b"h2", b"http/1.1")
    assert offered_protocols(hello("http/1.1")) == (b"http/1.1",)
    assert offered_protocols(hello()) == ()


def test_every_part_of_a_hello_wants_more() -> None:
    for length in range(len(USUAL)):
        assert offered_protocols(USUAL[:length]) is None


def test_a_message_may_be_cut_into_many_records() -> None:
    message = USUAL[5:]
    cut = b"".join(b"\x16\x03\x01\0\7" + message[place : place + 7] for place in range(0, len(message) - len(message) % 7, 7))
    rest = message[len(message) - len(message) % 7 :]
    cut += b"\x16\x03\x01" + len(rest).to_bytes(2, "big") + rest if rest else b""
    assert offered_protocols(cut) == (b"h2", b"http/1.1")


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\0\0\x16", b"\x16\x03\x01\0\4\2\0\0\0", b"\x16\x03\x01\0\4\1\0\xff\xff"]
)
def test_what_is_no_hello_is_left_to_the_library(data: bytes) -> None:
    assert offered_protocols(data) == ()


@given(st.binary(max_size=300), st.integers(0, len(USUAL) - 1), st.integers(0, 255))
def test_any_bytes_are_read_or_left_alone(data: bytes, place: int, value: int) -> None:
    damaged = USUAL[:place] + bytes([value]) + USUAL[place + 1 :]
    for one in (data, USUAL[:5] + data, damaged, damaged + data):
        found = offered_protocols(one)
        assert found is None or all(isinstance(name, bytes) for name in found)
