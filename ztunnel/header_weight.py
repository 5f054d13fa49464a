"""How much work a header block makes, found before it is decoded. Pure.

The library takes 7 us a field, 0.6 us a change of its table's size and 0.25 us a byte of Huffman's code, all in one go: a
block of 64 KiB, or the few bytes that stand for such a list, would keep everybody waiting for 15 to 45 ms. A look at the
lengths alone takes 0.5 us a field, and stops where it is too much. Source: RFC 7541 sections 4.2, 5.1, 5.2 and 6.
"""

from ztunnel.frames import Code, ProtocolError

MOST_FIELDS = 256
"""Five are usual; Envoy takes 100."""
MOST_CODED_BYTES = 8192
"""In Huffman's code."""
_MOST_RESIZES = 2
"""An encoder says the smallest size since the last block, and the last one."""


def weigh(block: bytes) -> None:
    """Pass what is not too much; what is malformed is the library's to refuse. Raises: ProtocolError."""
    fields = coded = resizes = position = 0
    end = len(block)
    while position < end:
        first = block[position]
        if first & 0xE0 == 0x20:
            resizes += 1
            if resizes > _MOST_RESIZES:
                raise ProtocolError(Code.COMPRESSION_ERROR, "a header block that resizes its table again and again")
            _, position = _number(block, position, 0x1F)
            continue
        fields += 1
        if fields > MOST_FIELDS:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, f"a header list of more than {MOST_FIELDS} fields")
        mask = 0x7F if first & 0x80 else 0x3F if first & 0x40 else 0x0F
        index, position = _number(block, position, mask)
        for _ in range(0 if first & 0x80 else 1 if index else 2):
            if position >= end:
                return
            in_code = block[position] & 0x80
            length, position = _number(block, position, 0x7F)
            position += length
            if in_code:
                coded += length
        if coded > MOST_CODED_BYTES:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, f"more than {MOST_CODED_BYTES} bytes of Huffman's code in a block")


def _number(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """An integer behind a prefix, and what follows it: a place behind the end where it is cut off, or longer than any block."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in (0, 7, 14):
        if position >= len(block):
            break
        more = block[position]
        position += 1
        value += (more & 0x7F) << shift
        if more < 0x80:
            return value, position
    return value, len(block)
