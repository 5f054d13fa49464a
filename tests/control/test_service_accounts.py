"""Tokens as Kubernetes makes them: only a valid one, of the right account, bound to a pod on a node, names that node."""

import base64
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from control.credentials import Credentials
from control.service_accounts import AUDIENCE, ServiceAccounts
from control.store import Store
from control.tokens import Tokens

pytestmark = pytest.mark.unit

ISSUER = "https://issuer.example"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())


def key_set(**keys: Any) -> str:
    """As /openid/v1/jwks answers."""
    made = []
    for kid, key in keys.items():
        algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        name = "RS256" if algorithm is RSAAlgorithm else "ES256"
        made.append({**json.loads(algorithm.to_jwk(key.public_key())), "use": "sig", "kid": kid, "alg": name})
    return json.dumps({"keys": made})


def token(key: Any = RSA, kid: str = "old", algorithm: str = "RS256", bound: Any = None, **changes: Any) -> str:
    """As the kubelet gets one for a pod of weft."""
    now = int(time.time())
    claims = {
        "aud": [AUDIENCE],
        "exp": now + 3607,
        "iat": now,
        "iss": ISSUER,
        "jti": "4ad9fb6f",
        "nbf": now,
        "sub": "system:serviceaccount:weft-system:weft-node",
        "kubernetes.io": {
            "namespace": "weft-system",
            "node": {"name": "node-1", "uid": "0a3e"},
            "pod": {"name": "weft-node-x7k2p", "uid": "c1f0"},
            "serviceaccount": {"name": "weft-node", "uid": "93b1"},
        }
        | (bound or {}),
    }
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid})


@pytest.fixture
def accounts(tmp_path: Path) -> ServiceAccounts:
    (tmp_path / "jwks.json").write_text(key_set(old=RSA, new=EC))
    return ServiceAccounts(tmp_path / "jwks.json", ISSUER)


def test_a_pods_token_names_its_node(accounts: ServiceAccounts) -> None:
    assert accounts.node_of(token()) == "node-1"
    assert accounts.node_of(token(EC, "new", "ES256")) == "node-1"


NOW = int(time.time())


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://kubernetes.default.svc"]},
        {"aud": None},
        {"iss": "https://other.example"},
        {"exp": NOW - 60},
        {"exp": None},
        {"nbf": NOW + 30 * 86400},  # however long it takes to come to this test
        {"iat": None},
        {"kid": "unknown"},
        {"key": STRANGER, "kid": "new", "algorithm": "ES256"},
        {"key": EC, "kid": "old", "algorithm": "ES256"},
        {"bound": {"node": None}},
        {"bound": {"node": {"uid": "0a3e"}}},
        {"bound": {"node": {"name": ["node-1"]}}},
        {"bound": {"pod": None}},
        {"bound": {"namespace": "shop"}},
        {"bound": {"serviceaccount": {"name": "web"}}},
        {"kubernetes.io": None},
        {"kubernetes.io": "weft-system"},
    ],
    ids=str,
)
def test_no_other_token_names_a_node(accounts: ServiceAccounts, changes: dict[str, Any]) -> None:
    assert accounts.node_of(token(**changes)) is None


def test_what_is_no_token_names_nobody(accounts: ServiceAccounts) -> None:
    unsigned = jwt.encode(jwt.decode(token(), options={"verify_signature": False}), "", "none", headers={"kid": "old"})
    public = json.loads(key_set(old=RSA))["keys"][0]["n"]
    symmetric = jwt.encode(jwt.decode(token(), options={"verify_signature": False}), public, "HS256", headers={"kid": "old"})
    head, body, signature = token().split(".")
    deep = base64.urlsafe_b64encode(b"[" * 4_000).decode().rstrip("=")
    for text in (
        "",
        "..",
        "a.b.c",
        unsigned,
        symmetric,
        f"{head}.{body}.",
        f"{head}..{signature}",
        f"{deep}.{body}.{signature}",
        "x" * 9000 + "..",
    ):
        assert accounts.node_of(text) is None
    assert accounts.node_of(token(bound={"pod": {"name": "x" * 9000}})) is None, "too long"


def test_keys_are_followed_and_bad_ones_leave_the_old_in_force(accounts: ServiceAccounts, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"

    def write(text: str) -> None:
        (tmp_path / "next").write_text(text)
        os.rename(tmp_path / "next", path)

    write("not JSON")
    assert accounts.node_of(token()) == "node-1"
    write(key_set(new=EC))
    assert accounts.node_of(token()) is None and accounts.node_of(token(EC, "new", "ES256")) == "node-1"
    path.unlink()
    assert accounts.node_of(token(EC, "new", "ES256")) == "node-1"


def test_keys_that_could_not_be_read_for_a_moment_are_read_again(
    accounts: ServiceAccounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "next").write_text(key_set(new=EC))
    os.rename(tmp_path / "next", tmp_path / "jwks.json")

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        assert [accounts.node_of(token()) for _ in range(2)] == ["node-1", "node-1"]
    assert caplog.text.count("Too many open files") == 1
    assert accounts.node_of(token()) is None and accounts.node_of(token(EC, "new", "ES256")) == "node-1"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "kid": "a", "k": "AA"}]}', '{"keys": [{}]}']
)
def test_a_file_without_keys_is_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(ValueError, match="kubectl get --raw /openid/v1/jwks"):
        ServiceAccounts(tmp_path / "jwks.json", ISSUER)


def test_both_kinds_of_token_are_bearers(accounts: ServiceAccounts, tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    try:
        tokens = Tokens(store)
        ours = tokens.issue("node-2", bytes(32))
        both = Credentials(tokens, "cluster.local", accounts=accounts)
        assert both.identify([f"Bearer {token()}"], []) == "node-1"
        assert both.identify([f"Bearer {ours}"], []) == "node-2"
        assert Credentials(tokens, "cluster.local").identify([f"Bearer {token()}"], []) is None
    finally:
        store.close()
