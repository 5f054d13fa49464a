"""What both kinds of resource are read with: messages, enumerations, addresses."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from sys import intern
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mesh.undecoded import rule_out_memory
from mesh.workload import Address

PORT_BITS = 0xFFFF
"""What of a wire's 32-bit port counts, in the original as here."""

_SHARED = 4096
"""Values kept for the next resource that says the same: those of one service, or of one namespace's policies."""
_T = TypeVar("_T")


def parse(message: Message, value: bytes) -> None:
    """Fill a message from bytes.

    Raises: ValueError if they are no such message; MemoryError.
    """
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        rule_out_memory(error)
        raise ValueError(f"decode: failed to decode Protobuf message: {error}") from error


def pick(values: tuple[_T, ...], number: int) -> _T:
    """Turn an enumeration's number into one of our values.

    Raises: ValueError for a number outside the enumeration.
    """
    if not 0 <= number < len(values):
        raise ValueError(f"decode error: unknown enumeration value {number}")
    return values[number]


def shared_strings(texts: Iterable[str]) -> tuple[str, ...]:
    """Equal texts of many resources as one object, and equal tuples of them: a large mesh says the same over and over."""
    return _shared(tuple(map(intern, texts)))


@lru_cache(maxsize=_SHARED)
def _shared(texts: tuple[str, ...]) -> tuple[str, ...]:
    return texts


def read_address(value: bytes) -> Address:
    """Read an address of 4 or 16 bytes.

    Raises: ValueError for any other length.
    """
    if len(value) == 4:
        return IPv4Address(value)
    if len(value) != 16:
        raise ValueError(f"failed to parse address, had {len(value)} bytes")
    return IPv6Address(value)
