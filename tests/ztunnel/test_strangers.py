"""Connections to who the mesh does not know pass through in plain; but not once it knows, as long as nobody has answered."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.workload import GatewayAddress, NetworkAddress
from tests.ztunnel.world import SERVER, World, run, world
from ztunnel.channel import Closed, Opened, UpdateInventory, WorkerStatus
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

LATE = "10.198.0.77"
"""A pod's address, before the control plane tells of the pod; what comes there in plain is not answered."""
_DROP = f'iifname "eth0" ip daddr {LATE} tcp dport 8080 drop;'
_SILENCE = f"table inet silence {{ chain c {{ type filter hook prerouting priority raw; {_DROP} }}; }}"


@pytest.fixture
def mesh() -> Iterator[World]:
    with world("strangers") as made:
        run("ip", "-n", made.server.netns, "addr", "add", f"{LATE}/24", "dev", "eth0")
        run("ip", "netns", "exec", made.server.netns, "nft", "-f", "-", text=_SILENCE)
        made.client.configuration = {"tuning": Tuning(connect_timeout_s=60.0)}  # whatever a busy machine does meanwhile
        made.start()
        yield made


@pytest.fixture
def dialling(mesh: World) -> socket.socket:
    """A client whose connection is on its way in plain."""
    client = mesh.client.connect(LATE, 8080)
    client.sendall(b"secret")
    mesh.client.worker.wait_for(WorkerStatus, lambda status: status.gauges["connecting"] == 1)
    return client


def tell(mesh: World, **changes: object) -> None:
    """The control plane tells of the pod."""
    addresses = (*mesh.server.workload.addresses, ip_address(LATE))
    known = replace(mesh.server.workload, addresses=addresses, **changes)  # type: ignore[arg-type]
    for pod in (mesh.server, mesh.client):
        pod.worker.tell(UpdateInventory([known], []))


def test_who_becomes_known_while_it_is_dialled_is_reached_by_mutual_tls(mesh: World, dialling: socket.socket) -> None:
    with mesh.server.listen(8080) as listener:
        tell(mesh)
        record = mesh.client.worker.wait_for(Opened).record
        assert (record.protocol, record.destination_identity) == ("HBONE", SERVER)
        server, _ = listener.accept()
        assert server.recv(100) == b"secret"
        server.close()


def test_who_turns_out_to_want_a_waypoint_that_is_not_there_is_not_reached(mesh: World, dialling: socket.socket) -> None:
    tell(mesh, waypoint=GatewayAddress(NetworkAddress("", ip_address("10.198.0.99")), 15008))
    record = mesh.client.worker.wait_for(Closed).record
    assert "unknown waypoint" in record.error
    with pytest.raises(ConnectionResetError):
        dialling.recv(1)


def test_others_becoming_known_disturb_nobody(mesh: World, dialling: socket.socket) -> None:
    for pod in (mesh.server, mesh.client):
        pod.worker.tell(UpdateInventory([replace(mesh.server.workload, canonical_name="other")], []))
    with mesh.server.listen(8080) as listener:
        run("ip", "netns", "exec", mesh.server.netns, "nft", "delete", "table", "inet", "silence")
        server, _ = listener.accept()
        assert server.recv(100) == b"secret"
        assert mesh.client.worker.wait_for(Opened).record.protocol == "TCP"
        server.close()
