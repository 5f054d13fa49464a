"""SOCKS5 without sockets: whole conversations, refusals, and whatever else may come."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.socks5 import Negotiation, Refusal, Reply

pytestmark = pytest.mark.unit

GREETING = b"\5\1\0"
V4 = b"\5\1\0\1\x0a\0\0\1\0\x50"


def hear(data: bytes, most: int = 1 << 16) -> tuple[Negotiation, bytes, bytes]:
    """Say it in pieces of `most` bytes; returns also what was answered, and what was not read."""
    talk, answers, place = Negotiation(), b"", 0
    while place < len(data) and talk.wanted:
        assert talk.wanted <= 262
        part = data[place : place + min(talk.wanted, most)]
        place += len(part)
        answers += talk.receive(part)
    return talk, answers, data[place:]


@pytest.mark.parametrize(
    ("request_", "host"),
    [
        (V4, ip_address("10.0.0.1")),
        (b"\5\1\0\4" + ip_address("fd00::1").packed + b"\0\x50", ip_address("fd00::1")),
        (b"\5\1\0\4" + ip_address("::ffff:10.0.0.1").packed + b"\0\x50", ip_address("10.0.0.1")),
        (b"\5\1\0\3\x09Web.Shop.\0\x50", "web.shop"),
        (b"\5\1\0\3\x03web\0\x50", "web"),
        (b"\5\1\0\3\xfd" + b".".join([b"a" * 63] * 3 + [b"a" * 61]) + b"\0\x50", ".".join(["a" * 63] * 3 + ["a" * 61])),
    ],
)
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_a_client_says_where_it_wants_to_go_and_nothing_behind_it_is_read(request_: bytes, host: object, most: int) -> None:
    talk, answers, left = hear(GREETING + request_ + b"GET / HTTP/1.1\r\n", most)
    assert talk.target == (host, 80) and answers == b"\5\0" and left == b"GET / HTTP/1.1\r\n" and talk.wanted == 0


@pytest.mark.parametrize(
    ("data", "words", "said"),
    [
        (b"\4\1", "version 4", b""),
        (b"GET / HTTP/1.1", "version 71", b""),
        (b"\5\0", "authenticate", b"\5\xff"),
        (b"\5\2\1\2", "authenticate", b"\5\xff"),
        (GREETING + b"\4\1\0\1\0", "version 4", b""),
        (GREETING + b"\5\2\0\1\x0a\0\0\1\0\x50", "command 2", Reply.COMMAND_NOT_SUPPORTED.said()),
        (GREETING + b"\5\3\0\1\x0a\0\0\1\0\x50", "command 3", Reply.COMMAND_NOT_SUPPORTED.said()),
        (GREETING + b"\5\1\0\2\1x\0\x50", "address type 2", Reply.ADDRESS_TYPE_NOT_SUPPORTED.said()),
        (GREETING + V4[:-2] + b"\0\0", "port 0", Reply.FAILED.said()),
        (GREETING + b"\5\1\0\3\0\0\x50", "no name", Reply.HOST_UNREACHABLE.said()),
        (GREETING + b"\5\1\0\3\4a..b\0\x50", "no name", Reply.HOST_UNREACHABLE.said()),
        (GREETING + b"\5\1\0\3\3a\0b\0\x50", "no name", Reply.HOST_UNREACHABLE.said()),
        (GREETING + b"\5\1\0\3\2\xc3\xa4\0\x50", "no name", Reply.HOST_UNREACHABLE.said()),
        (GREETING + b"\5\1\0\3\x40" + b"a" * 64 + b"\0\x50", "no name", Reply.HOST_UNREACHABLE.said()),
        (GREETING + b"\5\1\0\3\xff" + b"a." * 127 + b"a\0\x50", "no name", Reply.HOST_UNREACHABLE.said()),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(data: bytes, words: str, said: bytes) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        hear(data)
    assert refusal.value.said == said


@given(
    st.one_of(st.binary(max_size=600), st.binary(max_size=300).map(lambda data: GREETING + b"\5\1\0" + data)), st.integers(1, 9)
)
def test_whatever_comes_in_whatever_pieces_has_one_outcome(data: bytes, most: int) -> None:
    outcomes = []
    for size in (most, 1 << 16):
        try:
            talk, answers, left = hear(data, size)
            outcomes.append((talk.target, answers, left, talk.wanted))
        except Refusal as refusal:
            outcomes.append((str(refusal), refusal.said))
    assert outcomes[0] == outcomes[1]


def test_a_reply_has_an_address_that_nobody_can_use() -> None:
    assert Reply.SUCCEEDED.said().hex() == "05000001000000000000"


def test_ports_have_two_bytes() -> None:
    assert hear(GREETING + V4[:-2] + b"\x1f\x90")[0].target == (ip_address("10.0.0.1"), 8080)


def test_replies_have_the_rfcs_numbers() -> None:
    refused = (Reply.FAILED, Reply.HOST_UNREACHABLE, Reply.COMMAND_NOT_SUPPORTED, Reply.ADDRESS_TYPE_NOT_SUPPORTED)
    assert [reply.said()[1] for reply in refused] == [1, 4, 7, 8]


def test_no_more_is_read_at_first_than_a_greeting_without_methods() -> None:
    talk = Negotiation()
    assert talk.wanted == 2 and not talk.receive(b"\5\1") and talk.wanted == 1
