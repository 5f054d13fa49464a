"""Identities that a proxy makes up for a test: they work with each other, with nobody else, are loud, and are kept nowhere."""

import asyncio
import logging
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from mesh.identity import Identity
from wire.grpc_tls import Endpoint
from ztunnel.certificate_source import sealing_token
from ztunnel.certificates import Certificate
from ztunnel.config import Config
from ztunnel.fake_ca import FakeCA

pytestmark = pytest.mark.unit

WEB, DB = Identity("cluster.local", "demo", "web"), Identity("cluster.local", "demo", "db")


def fetch(ca: FakeCA, identity: Identity) -> Certificate:
    return asyncio.run(ca.fetch(identity, time.time()))


def trusts(roots_pem: bytes, shown: Certificate) -> bool:
    (leaf,) = x509.load_pem_x509_certificates(shown.chain_pem)
    verifier = PolicyBuilder().store(Store(x509.load_pem_x509_certificates(roots_pem))).build_client_verifier()
    try:
        return bool(verifier.verify(leaf, []))
    except VerificationError:
        return False


def test_its_identities_trust_each_other_and_nobody_elses() -> None:
    ca = FakeCA(ttl_s=3600)
    web, db, stranger = fetch(ca, WEB), fetch(ca, DB), fetch(FakeCA(3600), WEB)
    assert web.roots_pem == db.roots_pem and web.key_pem != db.key_pem
    (leaf,) = x509.load_pem_x509_certificates(web.chain_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(seconds=3720)
    assert leaf.issuer == x509.load_pem_x509_certificates(web.roots_pem)[0].subject
    assert not trusts(web.roots_pem, stranger) and not trusts(stranger.roots_pem, web)


def test_nobody_can_overlook_it(caplog: pytest.LogCaptureFixture) -> None:
    fetch(FakeCA(3600), WEB)
    first, second = caplog.records
    assert first.levelno == logging.ERROR and "prove nothing to anybody: for tests alone; unset FAKE_CA" in first.message
    assert second.levelno == logging.WARNING and second.message == f"FAKE_CA: made up a certificate for {WEB}"


def test_its_keys_are_not_kept_for_a_successor(tmp_path: Path) -> None:
    ca = Endpoint("ca:15012", None, tmp_path / "token", "Kubernetes")
    for fake in (False, True):
        config = Config("n1", tmp_path, tmp_path, tmp_path, "w", None, False, ca, fake_ca=fake)
        assert (sealing_token(config) is None) == fake
