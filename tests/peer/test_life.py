"""Pods that end, and others that get their addresses: nobody is left with a connection to what is no more."""

import time

import pytest

from tests.lab.mesh import pod
from tests.peer.cross import ECHO_PORT, CrossMesh

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]


@pytest.mark.parametrize(("node", "client"), [("a", "client-b"), ("b", "client-a")], ids=["a pod of weft", "a pod of Istio"])
def test_the_next_pod_with_its_address_is_reached_at_once(cross: CrossMesh, node: str, client: str) -> None:
    """With the same name and identity, so that nothing but the end of the old tunnel tells that it is another."""
    name = f"passing-{node}"
    passing = pod(name, node)
    cross.apply(passing)
    cross.puppet(name).echo(ECHO_PORT)
    address = cross.address(name)
    wire = cross.puppet(client).connect(address, ECHO_PORT)
    assert wire.says("before")
    cross.dismiss(name)
    cross.delete(passing)
    assert wire.ended(5) in ("end", "reset")
    try:
        cross.apply(passing)
        assert cross.pod(f"shop/{name}")["addresses"][0] == address
        cross.puppet(name).echo(ECHO_PORT)
        began = time.monotonic()
        assert cross.puppet(client).fate(address, ECHO_PORT) == "answered"
        assert time.monotonic() - began < 2
    finally:
        cross.dismiss(name)
        cross.delete(passing)
