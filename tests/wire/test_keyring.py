"""The kernel's own keyring: what one process stores another finds, each installation its own, and only while it lives."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.world import eventually
from wire import keyring

pytestmark = pytest.mark.kernel

INSTALLATION = f"weft-test-{os.getpid()}"
WEB = f"{keyring.scope(INSTALLATION, 'n1')}spiffe://cluster.local/ns/demo/sa/web"
SUCCESSOR = """
import ctypes, sys
from wire import keyring
_JOIN_SESSION_KEYRING = 1
own_session, name = sys.argv[1] == "own", sys.argv[2]
if own_session:
    keyring._keyctl(_JOIN_SESSION_KEYRING, 0)
print(keyring.read(name), keyring.names(name) == [name])
keyring.store(name, b"the successor's", 100)
"""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for installation in (INSTALLATION, f"{INSTALLATION}:n1", f"{INSTALLATION}-b"):
        keyring.forget_all(keyring.scope(installation))
    assert keyring.names(keyring.scope(INSTALLATION)) == []


@pytest.mark.parametrize("session", ["own", "inherited"])
def test_a_successor_in_whatever_session_reads_and_replaces_and_forgets(session: str) -> None:
    keyring.store(WEB, b"a secret", 100)
    run = [sys.executable, "-c", SUCCESSOR, session, WEB]
    assert subprocess.run(run, capture_output=True, text=True, timeout=100, check=True).stdout == "b'a secret' True\n"
    assert keyring.read(WEB) == b"the successor's"
    keyring.forget(WEB)
    keyring.forget(WEB)
    assert keyring.read(WEB) is None and keyring.names(WEB) == []


def test_the_kernel_destroys_what_has_lived() -> None:
    before = time.monotonic()
    keyring.store(WEB, b"short", 1.1)  # more than a second: the kernel counts whole ones, and this one may be nearly over
    assert keyring.read(WEB) == b"short" or time.monotonic() - before > 1, "unless the machine stood still for as long"
    eventually(lambda: keyring.read(WEB) is None)
    keyring.store(WEB, b"anew", 100)
    assert keyring.read(WEB) == b"anew", "its place can be taken"


@pytest.mark.parametrize("lifetime_s", [0.2, 0.0, -5.0])
def test_a_secret_whose_life_is_nearly_over_or_over_does_not_live_for_ever(lifetime_s: float) -> None:
    keyring.store(WEB, b"to live", 100)
    keyring.store(WEB, b"over", lifetime_s)
    eventually(lambda: keyring.read(WEB) is None)


def test_installations_and_nodes_do_not_share() -> None:
    same = "spiffe://cluster.local/ns/demo/sa/web"
    scopes = [keyring.scope(INSTALLATION, "n1"), keyring.scope(INSTALLATION, "n10")]
    scopes += [keyring.scope(f"{INSTALLATION}-b", "n1"), keyring.scope(f"{INSTALLATION}:n1", "n1")]
    for scope in scopes:
        keyring.store(scope + same, scope.encode(), 100)
    assert [keyring.read(scope + same) for scope in scopes] == [scope.encode() for scope in scopes]
    keyring.forget_all(scopes[0])
    assert [keyring.read(scope + same) for scope in scopes] == [None, *(scope.encode() for scope in scopes[1:])]
    keyring.forget_all(keyring.scope(INSTALLATION))
    assert [keyring.read(scope + same) for scope in scopes] == [None, None, *(scope.encode() for scope in scopes[2:])]


def test_the_largest_fits_and_a_larger_one_is_refused() -> None:
    keyring.store(WEB, b"x" * keyring.MAX_PAYLOAD_BYTES, 100)
    assert keyring.read(WEB) == b"x" * keyring.MAX_PAYLOAD_BYTES
    with pytest.raises(OSError) as caught:
        keyring.store(WEB, b"x" * (keyring.MAX_PAYLOAD_BYTES + 1), 100)
    assert caught.value.errno == errno.EINVAL


def test_keys_that_cannot_be_forgotten_are_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(keyring, "_keyctl", fail)
    for forget in (keyring.forget, keyring.forget_all):
        with pytest.raises(OSError, match="no memory"):
            forget(WEB)


FORBIDDEN = """
from lab.syscalls import forbid_keyrings
from wire import keyring
forbid_keyrings()
keyring.forget_all("weft:x:")
try:
    keyring.store("weft:x:y", b"z", 1)
except OSError as error:
    print(error)
"""


def test_where_keyrings_are_forbidden_there_is_nothing_to_forget() -> None:
    done = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[Errno 1] kernel keyring: Operation not permitted\n"
