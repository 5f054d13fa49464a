"""Issuer and serial number, read from DER without a library; compared with one."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.world import CLIENT, Authority
from ztunnel.der import Malformed, certificate_key, split_elements

pytestmark = pytest.mark.unit

CERTIFICATE = x509.load_pem_x509_certificate(Authority("a root").issue(str(CLIENT))[0])
DER = CERTIFICATE.public_bytes(Encoding.DER)


def test_a_certificate_has_the_key_that_a_library_reads() -> None:
    issuer, serial = certificate_key(DER)
    assert issuer == CERTIFICATE.issuer.public_bytes() and int.from_bytes(serial, "big") == CERTIFICATE.serial_number


def test_elements_one_after_the_other() -> None:
    assert split_elements(DER + b"\x05\x00" + DER) == [DER, b"\x05\x00", DER]
    assert split_elements(b"") == []


@pytest.mark.parametrize(
    "data", [b"\x30", b"\x30\x80", b"\x30\x85" + bytes(5), b"\x30\x02\x00", b"\x30\x82\x01", DER + b"\x00"]
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
