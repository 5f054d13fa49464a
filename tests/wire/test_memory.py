"""What memory does not suffice to read or write is not called broken: a policy that was refused would be missing for good."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import DecodeError, EncodeError

from mesh.delta import Resource
from mesh.resources import AUTHORIZATION_TYPE
from tests.answers import answer
from wire import mesh_cache
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.unit

# It may have no more than it has, and what is free of that is in pieces smaller than what it is to read.
CONFINED = """
import resource
import sys
from mesh.delta import Resource
from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.resources import decode_all, decode_authorization, encode_policy
from wire.xds_response import read_response
from tests.answers import answer

names = tuple(StringMatch("exact", f"cluster.local/ns/shop/sa/{'x' * 100}{number}") for number in range(100_000))
policy = Policy("shop", "p", Scope.NAMESPACE, Action.DENY, (((Match(principals=names),),),), False)
value = encode_policy(policy)
resources = [Resource(policy.key, "1", value)]
body = answer("type", resources)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
held = []
try:
    while True:
        held.append(bytearray(1 << 20))
except MemoryError:
    pass
try:
    if sys.argv[1] == "resource":
        decode_all(resources, lambda one: decode_authorization(one.name, one.value))
    else:
        read_response(body)
except MemoryError:
    sys.exit(7)
"""


@pytest.mark.parametrize("what", ["resource", "response"])
def test_what_memory_does_not_suffice_to_read_is_not_refused(what: str) -> None:
    command = [sys.executable, "-c", CONFINED, what]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_cache_that_memory_does_not_suffice_to_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_string(_: bytes) -> None:
        raise DecodeError("Error parsing message with type 'x': Arena alloc failed")

    resources = [Resource("a/b", "1", b"value")]
    MeshCache(tmp_path / "mesh.sqlite").apply(AUTHORIZATION_TYPE, answer(AUTHORIZATION_TYPE, resources))
    cache = MeshCache(tmp_path / "mesh.sqlite")
    with monkeypatch.context() as confined:
        confined.setattr(mesh_cache, "DeltaDiscoveryResponse", SimpleNamespace(FromString=from_string))
        with pytest.raises(MemoryError):
            cache.load(AUTHORIZATION_TYPE)
    assert cache.load(AUTHORIZATION_TYPE) == resources


def test_nor_does_one_end_that_memory_does_not_suffice_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it could not take waits, and comes with the next answer."""
    cache = MeshCache(tmp_path / "mesh.sqlite")
    cache.load(AUTHORIZATION_TYPE)
    monkeypatch.setattr(mesh_cache, "_SLACK_BYTES", 0)
    answers = [answer(AUTHORIZATION_TYPE, [Resource(f"a/{number}", "1", b"value")]) for number in range(9)]
    with monkeypatch.context() as confined:
        whole = mesh_cache.DeltaDiscoveryResponse

        class Confined:
            FromString = whole.FromString

            def __init__(self, **_: Any) -> None:
                pass

            def SerializeToString(self) -> bytes:
                raise EncodeError("Failed to serialize proto")

        confined.setattr(mesh_cache, "DeltaDiscoveryResponse", cast("Any", Confined))
        broken_off = 0
        for one in answers[:-1]:
            try:
                cache.apply(AUTHORIZATION_TYPE, one)
            except MemoryError:
                broken_off += 1
        assert broken_off
    cache.apply(AUTHORIZATION_TYPE, answers[-1])
    assert {one.name for one in MeshCache(tmp_path / "mesh.sqlite").load(AUTHORIZATION_TYPE)} == {f"a/{n}" for n in range(9)}
