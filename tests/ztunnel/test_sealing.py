"""Sealed certificates: opened whole by whoever knows token and name, and by nobody else."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mesh.identity import Identity
from ztunnel.certificates import Certificate
from ztunnel.sealing import NONCE_BYTES, CannotOpen, Seal

pytestmark = pytest.mark.unit

WEB = Identity("cluster.local", "demo", "web")
CERTIFICATE = Certificate(WEB, b"chain\n", b"-----BEGIN PRIVATE KEY-----\n", b"roots\n", 1.5, 86_401.25)
NONCE = bytes(range(NONCE_BYTES))
SEALED = Seal(b"token").close(CERTIFICATE, "weft:w:n1:web", NONCE)
TEXT = st.text(st.characters(codec="utf-8"))


@given(st.binary(min_size=1), TEXT, st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES), TEXT, TEXT, TEXT)
def test_what_was_sealed_is_opened_whole(token: bytes, name: str, nonce: bytes, chain: str, key: str, roots: str) -> None:
    certificate = Certificate(WEB, chain.encode(), key.encode(), roots.encode(), 1.5, 86_401.25)
    sealed = Seal(token).close(certificate, name, nonce)
    assert Seal(token).open(sealed, name, WEB) == certificate
    assert CERTIFICATE.key_pem not in sealed


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_one_changed_byte_is_enough(place: int, change: int) -> None:
    changed = bytearray(SEALED)
    changed[place] ^= change
    refused(b"token", bytes(changed))


@given(st.integers(0, len(SEALED) - 1))
def test_a_part_is_nothing(length: int) -> None:
    refused(b"token", SEALED[:length])
    refused(b"token", SEALED[length + 1 :])


@given(st.binary())
@example(b"")
@example(SEALED + b"x")
def test_anything_else_is_nothing(payload: bytes) -> None:
    assume(payload != SEALED)
    refused(b"token", payload)


@given(st.binary(min_size=1))
@example(b"tokens")
@example(b"token ")
def test_another_token_opens_nothing(token: bytes) -> None:
    assume(token != b"token")
    refused(token, SEALED)


@given(st.text())
@example("weft:w:n2:web")
def test_another_place_opens_nothing(name: str) -> None:
    assume(name != "weft:w:n1:web")
    with pytest.raises(CannotOpen):
        Seal(b"token").open(SEALED, name, WEB)


def test_no_token_seals_nothing() -> None:
    with pytest.raises(ValueError, match="no token"):
        Seal(b"")


def refused(token: bytes, payload: bytes) -> None:
    with pytest.raises(CannotOpen) as caught:
        Seal(token).open(payload, "weft:w:n1:web", WEB)
    assert caught.value.__cause__ is None and "PRIVATE" not in str(caught.value)
