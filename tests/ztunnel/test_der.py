"""Issuer and serial number, read from DER without a library; compared with one."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.world import CLIENT, Authority
from ztunnel.der import CertificateKey, Element, Malformed, certificate_key, read_element, split_elements

pytestmark = pytest.mark.unit

CERTIFICATE = x509.load_pem_x509_certificate(Authority("a root").issue(str(CLIENT))[0])
DER = CERTIFICATE.public_bytes(Encoding.DER)


def test_a_certificate_has_the_key_that_a_library_reads() -> None:
    issuer, serial = certificate_key(DER)
    assert issuer == CERTIFICATE.issuer.public_bytes() and int.from_bytes(serial, "big") == CERTIFICATE.serial_number


def tlv(tag: int, *content: bytes) -> bytes:
    inside = b"".join(content)
    return bytes((tag, len(inside))) + inside


NUMBER, ALGORITHM, ISSUER = tlv(2, b"\x07"), tlv(0x30, tlv(6, b"\x2a")), tlv(0x30, tlv(0x31))


def test_a_certificate_of_version_1_does_not_say_so() -> None:
    for version in (b"", tlv(0xA0, tlv(2, b"\x02"))):
        assert certificate_key(tlv(0x30, tlv(0x30, version, NUMBER, ALGORITHM, ISSUER))) == CertificateKey(ISSUER, b"\x07")


@pytest.mark.parametrize("parts", [(ALGORITHM, NUMBER, ISSUER), (NUMBER, NUMBER, ISSUER), (NUMBER, ALGORITHM, NUMBER)])
def test_what_stands_in_the_place_of_something_else_is_no_certificate(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(Malformed, match="in the place of"):
        certificate_key(tlv(0x30, tlv(0x30, *parts)))
    for outer, inner in ((0x31, 0x30), (0x30, 0x31)):
        with pytest.raises(Malformed, match="in the place of 0x30"):
            certificate_key(tlv(outer, tlv(inner, NUMBER, ALGORITHM, ISSUER)))


@pytest.mark.parametrize(
    ("data", "content", "end"),
    [(b"\5\0", 2, 2), (b"\4\x01x", 2, 3), (b"\4\x81\0", 3, 3), (b"\4\x84\0\0\0\1x", 6, 7), (b"\4\x7f" + bytes(127), 2, 129)],
)
def test_lengths_of_all_forms(data: bytes, content: int, end: int) -> None:
    assert read_element(data, 0, len(data)) == Element(data[0], content, end)
    with pytest.raises(Malformed):
        read_element(data, 0, len(data) - 1)


def test_elements_one_after_the_other() -> None:
    assert split_elements(DER + b"\x05\x00" + DER) == [DER, b"\x05\x00", DER]
    assert split_elements(b"") == []


@pytest.mark.parametrize(
    "data",
    [b"\x30", b"\x30\x80", b"\x30\x80" + bytes(200), b"\x30\x85" + bytes(5), b"\x30\x02\x00", b"\x30\x82\x01", DER + b"\x00"],
)
def test_what_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        split_elements(data)


@given(st.integers(0, len(DER) - 1), st.integers(0, 255))
def test_a_damaged_certificate_is_read_or_refused_and_nothing_else(place: int, value: int) -> None:
    damaged = bytearray(DER)
    damaged[place] = value
    try:
        key = certificate_key(bytes(damaged))
    except Malformed:
        return
    assert len(key.issuer) + len(key.serial) < len(DER)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    try:
        assert b"".join(split_elements(data)) == data
    except Malformed:
        pass
    with pytest.raises(Malformed):
        certificate_key(data)
