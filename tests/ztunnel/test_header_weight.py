"""Header blocks that would keep a worker busy for long are refused before they are decoded."""

from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.fields import FieldReader, literal
from ztunnel.frames import END_HEADERS, Code, ProtocolError
from ztunnel.header_weight import MOST_CODED_BYTES, MOST_FIELDS, weigh

pytestmark = pytest.mark.unit

_TEXT = st.binary(max_size=300)
_LISTS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), _TEXT), max_size=20)


def coded(size: int) -> bytes:
    """A field with a value of so many bytes in Huffman's code; the size fits the short form of its length."""
    return b"\0\x01x\xff" + bytes(((size - 127) & 127 | 128, (size - 127) >> 7)) + b"\x1f" * size


HEAVY = {
    "many changes of the table": (b"\x20" * 60_000 + b"\x82", Code.COMPRESSION_ERROR),
    "many changes of the table, long": (b"\x3f\xe1\x1f" * 20_000 + b"\x82", Code.COMPRESSION_ERROR),
    "changes in between": (b"\x82\x20\x82\x20\x82\x20", Code.COMPRESSION_ERROR),
    "many fields of the table": (b"\x82" * 60_000, Code.ENHANCE_YOUR_CALM),
    "many small fields": (b"\0\x81\x1f\x81\x1f" * 12_000, Code.ENHANCE_YOUR_CALM),
    "many fields that enter the table": (b"\x40\x01x\0" * 16_000, Code.ENHANCE_YOUR_CALM),
    "much in Huffman's code": (coded(8000) * 7, Code.ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize(("block", "code"), HEAVY.values(), ids=HEAVY)
def test_a_block_that_makes_much_work_is_not_decoded(block: bytes, code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Decoder, "decode", refuse)
    with pytest.raises(ProtocolError) as refused:
        FieldReader(64 << 10).begin(1, END_HEADERS, block)
    assert refused.value.code is code


def test_what_is_just_light_enough_is_decoded() -> None:
    for block, count in (
        (b"\x82" * MOST_FIELDS, MOST_FIELDS),
        (b"\x20\x3f\xe1\x1f\x82", 1),
        (b"\x0f\x01\x81\x1f" * MOST_FIELDS, MOST_FIELDS),
        (coded(MOST_CODED_BYTES // 2) + b"\x82", 2),
    ):
        assert len(FieldReader(64 << 10).begin(1, END_HEADERS, block) or ()) == count


def test_a_long_plain_list_stays_light() -> None:
    block = b"".join(literal(b"name", b"%d" % number) for number in range(1000))
    assert len(FieldReader(64 << 10).begin(1, END_HEADERS, block) or ()) == 1000


@given(_LISTS, st.booleans(), st.sampled_from([None, 0, 100, 4096]))
def test_whatever_an_encoder_makes_of_a_usual_list_is_light(
    said: list[tuple[bytes, bytes]], huffman: bool, table: int | None
) -> None:
    encoder = Encoder()
    for _ in range(2):
        if table is not None:
            encoder.header_table_size = table
        weigh(encoder.encode(said, huffman=huffman))


@given(st.binary(max_size=600))
def test_any_bytes_are_weighed_or_refused(block: bytes) -> None:
    try:
        weigh(block)
    except ProtocolError as error:
        assert error.code in (Code.COMPRESSION_ERROR, Code.ENHANCE_YOUR_CALM)


@given(_LISTS, st.data())
def test_what_is_weighed_is_what_the_library_reads(said: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    """A look that lost its way among the lengths would count something else than there is."""
    most = data.draw(st.integers(0, len(said)))
    block = Encoder().encode(said, huffman=data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ztunnel.header_weight.MOST_FIELDS", most)
        if most < len(said):
            with pytest.raises(ProtocolError):
                weigh(block)
        else:
            weigh(block)
    assert len(list(Decoder().decode(block, raw=True))) == len(said)
