"""Istio's own ztunnel as tests find it, and the lab where it stands beside weft's."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PEER
from tests.peer.cross import CrossMesh


@pytest.fixture(scope="session")
def ztunnel() -> str:
    """The command that runs Istio's ztunnel: of ZTUNNEL_BIN, which must name a program that says that it is one."""
    path = Path(os.environ[PEER]).absolute()
    if not os.access(path, os.X_OK):
        pytest.fail(f"{PEER}={path} cannot be run: name Istio's ztunnel binary, or leave it unset", pytrace=False)
    done = subprocess.run([path, "version"], capture_output=True, text=True, timeout=10, check=True)
    assert "BuildInfo" in done.stdout, f"{PEER}={path} is no ztunnel: {done.stdout!r}"
    return f"{shlex.quote(str(path))} proxy ztunnel"


@pytest.fixture(scope="package")
def cross(ztunnel: str) -> Iterator[CrossMesh]:
    """Weft's proxy on node a, Istio's on node b."""
    with CrossMesh(ztunnel) as made:
        made.serve()
        yield made
