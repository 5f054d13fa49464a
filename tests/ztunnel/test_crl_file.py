"""The file of revocation lists: what it may look like, and that it is followed."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.revocation_lists import revocation_list
from tests.ztunnel.world import CLIENT, SERVER, Authority
from wire import followed_file
from ztunnel import crl_file
from ztunnel.channel import SetRevoked
from ztunnel.crl_file import CrlFile, read_lists
from ztunnel.der import certificate_key

pytestmark = pytest.mark.unit

ONE, TWO = Authority("one"), Authority("two")
WEB, DB, OTHER = ONE.issue(str(CLIENT))[0], ONE.issue(str(SERVER))[0], TWO.issue(str(CLIENT))[0]


def names(revoked: dict[bytes, frozenset[bytes]], chain: bytes) -> bool:
    issuer, serial = certificate_key(x509.load_pem_x509_certificate(chain).public_bytes(Encoding.DER))
    return serial in revoked.get(issuer, ())


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_several_lists_of_several_authorities_expired_or_not(encoding: Any) -> None:
    data = revocation_list(ONE, WEB, expired=True, encoding=encoding) + revocation_list(TWO, OTHER, encoding=encoding)
    revoked = read_lists(data)
    assert names(revoked, WEB) and names(revoked, OTHER) and not names(revoked, DB)


def test_two_lists_of_one_authority_are_both_in_force() -> None:
    revoked = read_lists(revocation_list(ONE, WEB) + revocation_list(ONE, DB))
    assert names(revoked, WEB) and names(revoked, DB)


def test_no_list_is_no_revocation() -> None:
    assert read_lists(b"") == {} and read_lists(ONE.pem) == {}


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_file_that_is_still_being_written_is_no_file_of_fewer_lists(encoding: Any) -> None:
    first, second = revocation_list(ONE, WEB, encoding=encoding), revocation_list(TWO, OTHER, encoding=encoding)
    for written in (len(first) - 5, len(first) + len(second) - 30):
        with pytest.raises(ValueError):
            read_lists((first + second)[:written])


def test_a_list_that_its_authority_did_not_sign_is_refused() -> None:
    namesake = Authority("one")
    forged, others = revocation_list(namesake, WEB), revocation_list(TWO, OTHER)
    with pytest.raises(ValueError, match="the list of CN=one is not signed by it"):
        read_lists(others + forged, [ONE.certificate])
    assert names(read_lists(forged, [ONE.certificate, namesake.certificate]), WEB), "a root and its successor have one name"
    assert names(read_lists(others, [ONE.certificate]), OTHER), "nobody knows that authority"


@given(st.integers(1, 2**159))
def test_a_serial_number_is_written_as_a_certificate_writes_it(number: int) -> None:
    octets = crl_file._content_octets(number)
    assert int.from_bytes(octets, "big", signed=True) == number and (len(octets) == 1 or octets[:1] != b"\0" or octets[1] > 127)


@given(st.binary(max_size=300))
def test_noise_is_refused_with_a_reason(data: bytes) -> None:
    try:
        assert read_lists(data) == {}
    except ValueError:
        pass


def test_a_root_with_a_key_that_nobody_can_read_here_makes_its_lists_unchecked_and_nothing_worse() -> None:
    curve = bytes.fromhex("2a8648ce3d030107")
    der = ONE.certificate.public_bytes(Encoding.DER)
    root = x509.load_der_x509_certificate(der.replace(curve, curve[:-1] + b"\x63"))
    with pytest.raises(ValueError, match=r"Curve .* is not supported"):
        read_lists(revocation_list(ONE, WEB), [root])


def test_a_file_that_cannot_be_read_at_the_start_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca-crl.pem"
    assert CrlFile(path, lambda _: None).statement() == SetRevoked({}), "it may be mounted later"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"ca-crl\.pem \(CRL_PATH\): no revocation lists: .*: write PEM or DER"):
        CrlFile(path, lambda _: None)
    path.write_bytes(revocation_list(ONE, WEB, DB))
    monkeypatch.setattr(crl_file, "MAX_ENTRIES", 1)
    with pytest.raises(ValueError, match="more than 1 entries"):
        CrlFile(path, lambda _: None)
    path.write_bytes(b"x" * ((16 << 20) + 1))
    with pytest.raises(ValueError, match="more than 16 MiB: leave out"):
        CrlFile(path, lambda _: None)


def test_a_change_is_told_and_a_damaged_file_leaves_what_was(
    tmp_path: Path, eventually: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_file, "LOOK_S", 0.02)
    path, told = tmp_path / "ca-crl.pem", []

    def put(data: bytes) -> None:
        # As a mounted ConfigMap changes: another file under the same name.
        (tmp_path / "new").write_bytes(data)
        os.rename(tmp_path / "new", path)

    async def scenario() -> None:
        file = CrlFile(path, told.append)
        running = asyncio.ensure_future(file.run())
        put(revocation_list(ONE, WEB))
        await eventually(lambda: told)
        assert names(told[0].revoked, WEB) and file.statement() == told[0]
        put(b"nonsense")
        await eventually(lambda: "stay in force" in caplog.text)
        assert len(told) == 1 and names(file.revoked, WEB)
        put(revocation_list(ONE, DB, encoding=Encoding.DER))
        await eventually(lambda: len(told) == 2)
        assert names(file.revoked, DB) and not names(file.revoked, WEB)
        caplog.clear()
        file.know(Authority("one").pem)
        await eventually(lambda: "the list of CN=one is not signed by it" in caplog.text)
        file.know(ONE.pem)
        put(revocation_list(Authority("one"), encoding=Encoding.DER))
        # Twice, if it was there already when the root that has come was looked at.
        await eventually(lambda: "is not signed by it: write PEM or DER: the lists read before stay in force" in caplog.text)
        assert len(told) == 2 and names(file.revoked, DB), "nobody is let in again by a list that anybody may have written"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
