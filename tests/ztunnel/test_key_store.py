"""What a proxy leaves its successor, in the real keyring of the kernel."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.identity import Identity
from wire import keyring
from ztunnel.certificates import Certificate
from ztunnel.key_store import KeyStore

pytestmark = pytest.mark.kernel

INSTALLATION = f"weft-test-{os.getpid()}"
WEB, DB = (Identity("cluster.local", "demo", name) for name in ("web", "db"))


@pytest.fixture
def token(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "token"
    path.write_text("token\n")
    yield path
    keyring.forget_all(keyring.scope(INSTALLATION))


def store(token: Path, node: str = "n1") -> KeyStore:
    return KeyStore(INSTALLATION, node, token)


def issue(identity: Identity, ttl_s: float = 100, roots: bytes = b"roots") -> Certificate:
    now = time.time()
    return Certificate(identity, b"chain", b"a secret key", roots, now - 1, now + ttl_s)


def test_the_successor_of_this_node_finds_what_was_kept_and_nobody_else(token: Path) -> None:
    now, web = time.time(), issue(WEB)
    store(token).keep(web, now)
    (name,) = keyring.names(keyring.scope(INSTALLATION))
    assert b"secret" not in (keyring.read(name) or b""), "sealed"
    assert store(token).recall(WEB, now) == web
    assert store(token).recall(DB, now) is None and store(token, "n2").recall(WEB, now) is None
    newer = issue(WEB, 200)
    store(token).keep(newer, now)
    assert store(token).recall(WEB, now) == newer
    assert store(token).recall(WEB, now + 201) is None, "expired by the wall clock"
    assert keyring.names(keyring.scope(INSTALLATION)) == []


def test_what_another_token_sealed_is_destroyed_and_what_is_moved_does_not_open(token: Path) -> None:
    now, first = time.time(), store(token)
    first.keep(issue(WEB), now)
    first.keep(issue(DB), now)
    assert not first.outdated()
    token.write_text("rotated\n")
    assert first.outdated() == {WEB, DB}
    first.keep(issue(WEB), now)
    assert first.outdated() == {DB}, "one that was refreshed meanwhile speaks for itself alone"
    first.forget(DB)
    assert not first.outdated() and store(token).recall(WEB, now)
    token.write_text("rotated again\n")
    assert store(token).recall(WEB, now) is None and keyring.names(keyring.scope(INSTALLATION)) == []
    first.keep(issue(WEB), now)
    scope = keyring.scope(INSTALLATION, "n1")
    keyring.store(f"{scope}{DB}", keyring.read(f"{scope}{WEB}") or b"", 100)
    assert store(token).recall(DB, now) is None and store(token).recall(WEB, now)


def test_who_left_leaves_nothing(token: Path) -> None:
    now, one = time.time(), store(token)
    for identity in (WEB, DB):
        one.keep(issue(identity), now)
    keyring.store(f"{keyring.scope(INSTALLATION, 'n1')}no identity", b"x", 100)
    store(token).forget_strangers(lambda identity: identity == WEB)
    assert keyring.names(keyring.scope(INSTALLATION)) == [f"{keyring.scope(INSTALLATION, 'n1')}{WEB}"]
    one.forget(WEB)
    assert keyring.names(keyring.scope(INSTALLATION)) == []


def test_what_cannot_be_kept_costs_one_line(token: Path, caplog: pytest.LogCaptureFixture) -> None:
    now, one = time.time(), store(token)
    one.keep(issue(WEB), now)
    for _ in range(3):
        one.keep(issue(WEB, roots=b"r" * keyring.MAX_PAYLOAD_BYTES), now)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"certificate and roots of {WEB} are too large to be kept for a successor"
    ]
    assert store(token).recall(WEB, now) is None, "the one before is not what the proxy has"
    caplog.clear()
    token.unlink()
    for _ in range(3):
        one.keep(issue(WEB), now)
        assert one.recall(WEB, now) is None
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


FORBIDDEN = """
import logging, sys, time
from pathlib import Path
from lab.syscalls import forbid_keyrings
from mesh.identity import Identity
from ztunnel.certificates import Certificate
from ztunnel.key_store import KeyStore
forbid_keyrings()
logging.basicConfig(format="%(message)s")
store, web, now = KeyStore("x", "n1", Path(sys.argv[1])), Identity("td", "ns", "web"), time.time()
for _ in range(3):
    assert store.recall(web, now) is None
    store.keep(Certificate(web, b"chain", b"key", b"roots", now, now + 9), now)
    store.forget(web)
    store.forget_strangers(lambda _: False)
    assert not store.outdated()
"""


def test_where_keyrings_are_forbidden_it_is_one_line_and_nothing_else(token: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, str(token)], capture_output=True, text=True, timeout=100, check=True
    )
    problem, consequence = "kernel keyring: Operation not permitted", "a successor of this proxy will have to ask the CA"
    assert done.stderr == f"[Errno 1] {problem}: {consequence} for certificates\n"
