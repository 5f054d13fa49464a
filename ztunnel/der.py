"""As much of DER as names a certificate: who issued it, and its serial number. Pure.

Workers import no certificate library. What they read here has passed OpenSSL; every length is checked all the same.
Source: X.690 section 8.1, RFC 5280 section 4.1.
"""

from typing import NamedTuple

_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_LONG_FORM, _MAX_LENGTH_OCTETS = 0x80, 4


class Malformed(ValueError):
    """Not what DER, or a certificate, looks like."""


class Element(NamedTuple):
    """A tag and where its content lies."""

    tag: int
    content: int
    end: int


class CertificateKey(NamedTuple):
    """What a revocation list names a certificate by."""

    issuer: bytes
    """The issuer's name, DER."""
    serial: bytes
    """The content octets of the number."""


def read_element(data: bytes, place: int, end: int) -> Element:
    """The element that begins at `place`. Raises: Malformed where it does not fit in before `end`."""
    if end - place < 2:
        raise Malformed("DER ends too early")
    tag, length, content = data[place], data[place + 1], place + 2
    if length >= _LONG_FORM:
        octets = length - _LONG_FORM
        if not 1 <= octets <= _MAX_LENGTH_OCTETS or end - content < octets:
            raise Malformed("a DER length of a strange form")
        length = int.from_bytes(data[content : content + octets], "big")
        content += octets
    if length > end - content:
        raise Malformed("a DER element longer than what holds it")
    return Element(tag, content, content + length)


def split_elements(data: bytes) -> list[bytes]:
    """Elements that follow one another. Raises: Malformed."""
    found, place = [], 0
    while place < len(data):
        end = read_element(data, place, len(data)).end
        found.append(data[place:end])
        place = end
    return found


def certificate_key(der: bytes) -> CertificateKey:
    """Issuer and serial number of a certificate. Raises: Malformed."""
    signed = _expect(der, _expect(der, Element(0, 0, len(der)), 0, _SEQUENCE), 0, _SEQUENCE)
    place = signed.content
    first = read_element(der, place, signed.end)
    if first.tag == _VERSION:
        place = first.end
    serial = _expect(der, signed, place - signed.content, _INTEGER)
    algorithm = _expect(der, signed, serial.end - signed.content, _SEQUENCE)
    issuer = _expect(der, signed, algorithm.end - signed.content, _SEQUENCE)
    return CertificateKey(der[algorithm.end : issuer.end], der[serial.content : serial.end])


def _expect(data: bytes, within: Element, offset: int, tag: int) -> Element:
    element = read_element(data, within.content + offset, within.end)
    if element.tag != tag:
        raise Malformed(f"DER tag {element.tag:#x} in the place of {tag:#x}")
    return element
