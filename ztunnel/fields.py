"""Header blocks of one HTTP/2 connection: put together from HEADERS and CONTINUATION, bounded, decoded by `hpack`."""

from functools import cached_property, lru_cache

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from ztunnel.frames import END_HEADERS, HPACK_TABLE_BYTES, PADDED, PRIORITISED, Code, ProtocolError
from ztunnel.header_weight import weigh

Fields = list[tuple[bytes, bytes]]
Repeating = tuple[tuple[bytes, bytes], ...]
"""Fields that one stream after the other sends; hashable."""

MAX_CONTINUATIONS = 16
_ENTRY_BYTES = 32
"""What RFC 7541 adds for each field of a list."""
_LAST_STATIC, _LAST_STATIC_NAME = 0x80 | HeaderTable.STATIC_TABLE_LENGTH, 0x40 | HeaderTable.STATIC_TABLE_LENGTH
"""As the byte of an indexed field, and of a literal with an indexed name."""
_FORWARDED, _TRACE = b"\0\x09forwarded", b"\0\x0btraceparent\x37"
"""As `ztunnel.hbone` writes the two fields that are a request's own, the latter with the length of its value."""
_TRACE_BYTES = 55
_OWN_BYTES = len(b"forwarded") + len(b"traceparent") + _TRACE_BYTES + 2 * _ENTRY_BYTES
_MAX_KNOWN, _LONGEST_KNOWN = 64, 8
_CUT_OFF = b"\xff\xff\xff"
"""Read behind the end of a block: no length of a plain string."""
_BOMB_FACTOR = 2
"""A list above its limit costs the stream; above this many times the limit, the connection: decoding stops there."""


class FieldReader:
    """Turns header frames into lists of fields. Owns the connection's HPACK decoding state."""

    def __init__(self, max_list_bytes: int) -> None:
        self.max_list_bytes = max_list_bytes
        self.stream_id = 0
        """The stream whose block is unfinished: only its CONTINUATION may come next."""
        self.ends_stream = False
        self.list_bytes = 0
        """The size of the last list, as MAX_HEADER_LIST_SIZE counts it."""
        self._fragments = bytearray()
        self._continuations = 0
        self._first: Fields | None = None
        """What the first block entered into the table."""
        self._known: dict[bytes, tuple[Fields, int]] = {}
        """Fields that stand in the table one after the other, and their size; as long as nothing enters it."""

    @cached_property
    def _decoder(self) -> Decoder:
        # Not before the second block: many a tunnel carries one stream, and never asks the table for anything.
        decoder = Decoder(max_header_list_size=_BOMB_FACTOR * self.max_list_bytes)
        decoder.max_allowed_table_size = HPACK_TABLE_BYTES
        for name, value in self._first or ():
            decoder.header_table.add(name, value)
        self._first = []
        return decoder

    def begin(self, stream_id: int, flags: int, payload: bytes) -> Fields | None:
        """Take a HEADERS frame; the fields when they are complete. Raises: ProtocolError."""
        if flags == END_HEADERS:
            self.ends_stream = False
            return self._decode(payload)
        fragment = strip_padding(payload) if flags & PADDED else payload
        if flags & PRIORITISED:
            if len(fragment) < 5:
                raise ProtocolError(Code.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if int.from_bytes(fragment[:4], "big") & 0x7FFFFFFF == stream_id:
                raise ProtocolError(Code.PROTOCOL_ERROR, "stream depends on itself")
            fragment = fragment[5:]
        self.stream_id = stream_id
        self.ends_stream = bool(flags & 0x1)
        self._continuations = 0
        self._fragments = bytearray(fragment)
        return self._finish() if flags & END_HEADERS else None

    def go_on(self, stream_id: int, flags: int, payload: bytes) -> Fields | None:
        """Take a CONTINUATION frame; the fields when they are complete. Raises: ProtocolError."""
        if not self.stream_id or stream_id != self.stream_id:
            raise ProtocolError(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._continuations += 1
        self._fragments += payload
        if self._continuations > MAX_CONTINUATIONS or len(self._fragments) > self.max_list_bytes:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "header block beyond its bounds")
        return self._finish() if flags & END_HEADERS else None

    def _finish(self) -> Fields:
        self.stream_id = 0
        block, self._fragments = bytes(self._fragments), bytearray()
        return self._decode(block)

    def _decode(self, block: bytes) -> Fields:
        again = self._read_again(block)
        if again is not None:
            return again
        try:
            read = self._read_plain(block)
            if read is None:
                weigh(block)
                self._known.clear()
                fields = list(self._decoder.decode(block, raw=True))
                self.list_bytes = list_bytes(fields)
                return fields
            fields, new = read
            if new and self._first is None:
                self._first = new
            elif new:
                self._known.clear()
                for name, value in new:
                    self._decoder.header_table.add(name, value)
            else:
                self._remember(block, fields)
            return fields
        except OversizedHeaderListError as error:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "header list far beyond its bounds") from error
        except (HPACKError, IndexError, ValueError) as error:
            raise ProtocolError(Code.COMPRESSION_ERROR, "header block does not decode") from error

    def _read_again(self, block: bytes) -> Fields | None:
        """A block that begins as one did before, with nothing behind it, or with what each of weft's requests has of its own.

        None: any other. A connection's requests and answers are mostly such, and cost a tenth of what `_read_plain` takes.
        """
        first, _, own = block.partition(_FORWARDED)
        known = self._known.get(first)
        if known is None:
            return None
        fields, size = known
        if not own:
            if len(first) < len(block):
                return None
            self.list_bytes = size
            return fields[:]
        length = own[0]
        if length >= 0x7F or len(own) != 1 + length + len(_TRACE) + _TRACE_BYTES or not own.startswith(_TRACE, 1 + length):
            return None
        size += length + _OWN_BYTES
        if size > self.max_list_bytes:
            return None
        self.list_bytes = size
        return [*fields, (b"forwarded", own[1 : 1 + length]), (b"traceparent", own[-_TRACE_BYTES:])]

    def _remember(self, block: bytes, fields: Fields) -> None:
        first = block.partition(_FORWARDED)[0]
        if 0 < len(first) <= _LONGEST_KNOWN and min(first) > 0x80 and max(first) < 0xFF:  # a byte for each field
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            begin = fields[: len(first)]
            self._known[first] = begin, list_bytes(begin)

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        static = HeaderTable.STATIC_TABLE
        found: tuple[bytes, bytes] = (
            static[index - 1] if index <= len(static) else self._decoder.header_table.get_by_index(index)
        )
        return found

    def _read_plain(self, block: bytes) -> tuple[Fields, Fields] | None:
        """Decode a block that is not Huffman-coded: all that weft itself sends. The fields, and those that enter the table.

        None: anything else, for the library, which is 3x slower and knows all forms. So nothing here needs to be complete.
        """
        fields: Fields = []
        new: Fields = []
        position, end, size = 0, len(block), 0
        while position < end:
            first = block[position]
            position += 1
            if first > 0x80:
                if first == 0xFF or (new and first > _LAST_STATIC):
                    return None  # what enters the table moves what is there
                field = self._entry(first & 0x7F)
            else:
                name, position = _plain_name(block, position)
                value, position = _plain_string(block, position)
                if not name or position > end:
                    return None
                field = (name, value)
                if first & 0x40:
                    new.append(field)
            size += len(field[0]) + len(field[1]) + _ENTRY_BYTES
            if size > self.max_list_bytes:
                return None
            fields.append(field)
        self.list_bytes = size
        return fields, new


def _plain_name(block: bytes, position: int) -> tuple[bytes, int]:
    """The name of a literal whose first byte is before `position`, and what follows; empty where it is of another form."""
    first = block[position - 1]
    if first in (0x00, 0x10, 0x40):
        return _plain_string(block, position)
    if 0x40 < first <= _LAST_STATIC_NAME:
        return HeaderTable.STATIC_TABLE[first - 0x41][0], position
    return b"", position


def _plain_string(block: bytes, position: int) -> tuple[bytes, int]:
    """A plain string of less than 16 KiB, and what follows it; empty, or a place behind the end, when it is none."""
    ahead = block[position : position + 3] + _CUT_OFF
    length, position = ahead[0], position + 1
    if length == 0x7F:
        length += ahead[1] & 0x7F
        position += 1
        if ahead[1] > 0x7F:
            length += ahead[2] << 7
            position += 1
            if ahead[2] > 0x7F:
                return b"", len(block) + 1
    elif length > 0x7F:
        return b"", len(block) + 1
    end = position + length
    return block[position:end], end


def list_bytes(fields: Fields) -> int:
    """The size of a list as MAX_HEADER_LIST_SIZE counts it."""
    return sum(len(name) + len(value) + _ENTRY_BYTES for name, value in fields)


def strip_padding(payload: bytes) -> bytes:
    """The payload of a padded frame without its padding. Raises: ProtocolError when the padding is longer than the frame."""
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(Code.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _literal_length(length: int) -> bytes:
    """A string length with a 7-bit prefix, not Huffman-coded (RFC 7541, 5.1 and 5.2)."""
    if length < 127:
        return bytes((length,))
    out, rest = bytearray((127,)), length - 127
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """A field that no table remembers: right for values that never come again, and 4x cheaper than looking them up."""
    return b"\0" + _literal_length(len(name)) + name + _literal_length(len(value)) + value


class FieldWriter:
    """Encodes the fields that repeat, through the peer's table; owns the connection's HPACK encoding state."""

    def __init__(self) -> None:
        self._first: Repeating | None = None
        """What the first block entered into the table."""
        self._stable: dict[Repeating, bytes] = {}
        """Blocks of table entries only: the same until something enters the table and moves what is there."""

    @cached_property
    def _encoder(self) -> Encoder:
        # As in FieldReader.
        encoder = Encoder()
        for name, value in self._first or ():
            encoder.header_table.add(name, value)
        self._first = ()
        return encoder

    def resize(self, table_bytes: int) -> None:
        """Follow the peer's HEADER_TABLE_SIZE, up to our own bound.

        The next block says the smallest size since the last one, and the present one (RFC 7541, 4.2). The library would say
        each, though the peer takes none beyond its last word by then; and nothing at all where the last one was no change.
        """
        encoder, size = self._encoder, min(table_bytes, HPACK_TABLE_BYTES)
        if size == encoder.header_table_size:
            return
        self._stable.clear()
        smallest = min((size, *encoder.table_size_changes))
        encoder.header_table_size = size
        encoder.table_size_changes = [size] if smallest == size else [smallest, size]

    def encode(self, fields: Fields | Repeating) -> bytes:
        """Encode in the given order."""
        key = tuple(fields)
        block = self._stable.get(key)
        if block is None:
            if self._first is None:
                block, self._first = _first_block(key)
            else:
                block = self._encoder.encode(fields, huffman=False)
            if len(block) == len(fields) and min(block) > 0x80:  # one byte each: all were in the table
                self._stable[key] = block
            else:
                self._stable.clear()
        return block


@lru_cache(512)
def _first_block(fields: Repeating) -> tuple[bytes, Repeating]:
    """What a new connection's first fields are encoded to, and those that then are in the table, the oldest first."""
    encoder = Encoder()
    block = encoder.encode(fields, huffman=False)
    return block, tuple(reversed(encoder.header_table.dynamic_entries))
