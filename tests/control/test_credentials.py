from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from control.authority import make_root
from control.credentials import Credentials
from control.store import Store
from control.tokens import Tokens
from mesh.identity import Identity
from tests.conftest import Authority

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def tokens(tmp_path: Path):
    store = Store(tmp_path / "control.db")
    yield Tokens(store)
    store.close()


def test_a_bearer_token_names_its_node(tokens: Tokens) -> None:
    credentials = Credentials(tokens, "cluster.local")
    token = tokens.issue("n1", bytes(32))
    assert credentials.identify([f"Bearer {token}"], []) == "n1"
    assert credentials.identify([f"bearer {token} "], []) == "n1"
    for headers in ([], [token], [f"Basic {token}"], [f"Digest {token}"], ["Bearer "], [f"Bearer {token}"] * 2):
        assert credentials.identify(headers, []) is None


def test_only_a_node_certificate_names_a_node(tokens: Tokens) -> None:
    credentials = Credentials(tokens, "cluster.local")
    authority = make_root(ec.generate_private_key(ec.SECP256R1()), "cluster.local", NOW, 1)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    token = tokens.issue("n2", bytes(32))

    def shown(spiffe_id: str) -> str | None:
        pem = authority.sign_workload(key, spiffe_id, timedelta(hours=1), NOW, 2)
        return credentials.identify([f"Bearer {token}"], [pem.encode()])

    assert shown("spiffe://cluster.local/node/n1") == "n1"
    renamed = Credentials(tokens, "new.domain", frozenset({"cluster.local"}))
    pem = authority.sign_workload(key, "spiffe://cluster.local/node/n1", timedelta(hours=1), NOW, 2)
    assert renamed.identify([], [pem.encode()]) == "n1", "from before the mesh got its new name"
    # A certificate that names no node is not excused by a token.
    for other in (
        "spiffe://cluster.local/ns/demo/sa/web",
        "spiffe://cluster.local/node/",
        "spiffe://cluster.local/node/n1/x",
        "spiffe://other/node/n1",
        "n1",
    ):
        assert shown(other) is None
    assert credentials.identify([], [b"no certificate"]) is None


class Call:
    """A call as far as its client certificates go."""

    def __init__(self, *certificates: bytes) -> None:
        self._shown = {"x509_pem_cert": certificates} if certificates else {}

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._shown

    def invocation_metadata(self) -> None:
        return None


def test_a_certificate_speaks_for_one_workload_or_node_or_for_nobody(tokens: Tokens, authority: Authority) -> None:
    credentials = Credentials(tokens, "cluster.local")
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    web, node = "spiffe://cluster.local/ns/demo/sa/web", "spiffe://cluster.local/node/n1"

    def shown(*certificates: bytes) -> tuple[str | None, Identity | None]:
        call = cast(grpc.aio.ServicerContext, Call(*certificates))
        return credentials.node_of(call), credentials.workload_of(call)

    assert shown(authority.workload(key, web)) == (None, Identity("cluster.local", "demo", "web"))
    assert shown(authority.workload(key, node)) == ("n1", None)
    for uris in ((web, node), (node, web), (web, web), (), ("https://example.org/",)):
        assert shown(authority.workload(key, *uris)) == (None, None)
    assert shown(b"no certificate") == shown() == (None, None)
