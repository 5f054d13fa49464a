"""Istio's ztunnel on demand (XDS_ON_DEMAND) under weft's control plane: it asks for what it meets, and nobody waits in vain."""

import time
from collections.abc import Iterator

import pytest

from tests.peer.cross import ECHO_PORT, VERSIONS, CrossMesh, authentication, node

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90)]

PATIENCE_S = 2.0
HOST_PORT = 7005


@pytest.fixture(scope="module")
def demanding(cross: CrossMesh) -> Iterator[CrossMesh]:
    """On demand and without the DNS proxy, which Istio's ztunnel has only where it knows everything."""
    cross.apply(node("b", f"env XDS_ON_DEMAND=true ISTIO_META_DNS_CAPTURE=false {cross.ztunnel}"))
    yield cross
    cross.apply(node("b", cross.command))


def first(demanding: CrossMesh, client: str, host: str, port: int = ECHO_PORT) -> None:
    """The very first connection there is answered, and soon."""
    began = time.monotonic()
    assert demanding.puppet(client).fate(host, port) == "answered"
    assert time.monotonic() - began < PATIENCE_S


def known(demanding: CrossMesh) -> set[str]:
    dump = demanding.config_dump("b")
    return {one["name"] for one in dump["workloads"]}


def test_it_begins_with_its_own_pods(demanding: CrossMesh) -> None:
    assert known(demanding) == {"client-b", "server-b", "outsider-b"}
    assert demanding.config_dump("b")["services"] == []


def test_clients_of_weft_are_served_before_anything_was_asked_for(demanding: CrossMesh) -> None:
    first(demanding, "client-a", demanding.address("server-b"))
    first(demanding, "client-a", "server-b")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_first_connection_to_an_address(demanding: CrossMesh, version: int) -> None:
    """Of a pod of weft's, of a neighbour, of a pod outside of the mesh on either node, and of nobody that control knows."""
    for name in ("server-a", "server-b", "outsider-a", "outsider-b"):
        first(demanding, "client-b", demanding.address(name, version))
    host = next(one for one in demanding.status()["nodes"] if one["name"] == "a")["addresses"][0 if version == 4 else 1]
    if version == 4:
        demanding.host("a").echo(HOST_PORT)
    first(demanding, "client-b", host, HOST_PORT)
    assert {"server-a", "outsider-a"} <= known(demanding)


def test_the_first_connection_to_a_service(demanding: CrossMesh) -> None:
    first(demanding, "client-b", "server-a")
    assert "server-a" in {one["name"] for one in demanding.config_dump("b")["services"]}


def test_policies_hold_all_the_same(demanding: CrossMesh) -> None:
    with demanding.having(authentication("STRICT")):
        assert demanding.puppet("outsider-a").fate(demanding.address("server-b"), ECHO_PORT) in ("reset", "end")
        first(demanding, "client-a", demanding.address("server-b"))
        first(demanding, "client-b", demanding.address("server-a"))
