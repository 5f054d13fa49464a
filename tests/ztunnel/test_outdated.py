"""The mesh changes while a connection waits: it goes where it would go now, past no waypoint, and from no tunnel to plain."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from mesh.identity import Identity
from mesh.workload import GatewayAddress, NamespacedHostname, TunnelProtocol
from tests.ztunnel.world import CLIENT, SERVER, VIP, PodWorld, World, run, world
from ztunnel.channel import NeedCertificate, Opened, RemovePod, UpdateInventory, WorkerStatus
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

NOWHERE = GatewayAddress(NamespacedHostname("shop", "gone.shop.svc.cluster.local"), 15008)
SOMEBODY = Identity("cluster.local", "shop", "somebody")
SILENT = "10.198.0.77"
"""Another address of the server's pod."""
_DROP = f'iifname "eth0" ip daddr {SILENT} tcp dport {{ 8080, 15008 }} drop;'
_SILENCE = f"table inet silence {{ chain c {{ type filter hook prerouting priority raw; {_DROP} }}; }}"


@pytest.fixture
def mesh() -> Iterator[World]:
    """A client whose certificate is not there yet, so that its connections wait after they were routed."""
    with world("outdated") as made:
        for pod in made.pods.values():  # as patient as a busy machine needs
            pod.configuration["tuning"] = Tuning(connect_timeout_s=60, workload_timeout_s=60)
        run("ip", "-n", made.server.netns, "addr", "add", f"{SILENT}/24", "dev", "eth0")
        made.client.start(made.inventory, [])
        made.server.start(made.inventory, [made.authority.certificate_for(SERVER)])
        yield made


def tell(pod: PodWorld, message: object) -> None:
    """Tell a pod's worker, which has taken it in when this returns."""
    pod.worker.tell(message)
    pod.worker.catch_up()


def nft(mesh: World, *words: str, text: str = "") -> None:
    """In the server's network."""
    run("ip", "netns", "exec", mesh.server.netns, "nft", *words, text=text)


def dialling(mesh: World, address: str, port: int) -> socket.socket:
    """A client whose connection is on its way to SILENT, where nobody answers until `nft delete table inet silence`."""
    nft(mesh, "-f", "-", text=_SILENCE)
    client = mesh.client.connect(address, port)
    client.sendall(b"secret")
    mesh.client.worker.wait_for(WorkerStatus, lambda status: status.gauges["connecting"] == 1)
    return client


def waiting(mesh: World, address: str, port: int) -> socket.socket:
    client = mesh.client.connect(address, port)
    client.sendall(b"secret")
    mesh.client.worker.wait_for(NeedCertificate)
    return client


def go_on(mesh: World) -> None:
    mesh.client.worker.tell(mesh.authority.certificate_for(CLIENT))


def change(mesh: World, upserts: list[Any], removals: list[str] | None = None) -> None:
    tell(mesh.client, UpdateInventory(upserts, removals or []))


def heard(mesh: World, listener: socket.socket) -> str:
    """What carried the connection, whose bytes came through."""
    record = mesh.client.worker.wait_for(Opened).record
    server, _ = listener.accept()
    with server:
        assert server.recv(100) == b"secret"
    return record.protocol


@pytest.mark.parametrize(("address", "port"), [(VIP, 80), ("10.198.0.2", 8080)])
def test_a_waypoint_that_comes_meanwhile_is_not_gone_past(mesh: World, address: str, port: int) -> None:
    with mesh.server.listen(8080) as listener:
        client = waiting(mesh, address, port)
        change(mesh, [replace(mesh.service, waypoint=NOWHERE), replace(mesh.server.workload, waypoint=NOWHERE)])
        go_on(mesh)
        assert mesh.client.worker.closed().error.startswith("unknown waypoint: shop/gone.shop.svc.cluster.local")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_who_comes_to_be_somebody_else_must_prove_to_be_that_one(mesh: World) -> None:
    with mesh.server.listen(8080):
        waiting(mesh, "10.198.0.2", 8080)
        change(mesh, [replace(mesh.server.workload, service_account="somebody")])
        go_on(mesh)
        record = mesh.client.worker.closed()
        assert record.destination_identity == SOMEBODY and "did not present the expected SAN" in record.error


def test_another_endpoint_is_chosen_where_the_chosen_one_is_gone(mesh: World) -> None:
    """The first choice is an address where nobody is; before anything was dialled there it leaves the mesh."""
    ghost = replace(
        mesh.server.workload, uid="Kubernetes//Pod/shop/ghost", name="ghost", addresses=(ip_address("10.198.0.88"),)
    )
    change(mesh, [ghost], [mesh.server.workload.uid])
    with mesh.server.listen(8080) as listener:
        waiting(mesh, VIP, 80)
        change(mesh, [mesh.server.workload], [ghost.uid])
        go_on(mesh)
        assert heard(mesh, listener) == "HBONE"


def test_who_leaves_the_mesh_meanwhile_is_not_reached_in_plain(mesh: World) -> None:
    """It still answers as who it was: that is how it is reached. Its address alone is no reason to send anything."""
    with mesh.server.listen(8080) as listener:
        waiting(mesh, "10.198.0.2", 8080)
        change(mesh, [], [mesh.server.workload.uid])
        go_on(mesh)
        assert heard(mesh, listener) == "HBONE"


def test_who_is_withdrawn_meanwhile_is_not_reached_in_plain(mesh: World) -> None:
    with mesh.server.listen(8080) as listener:
        waiting(mesh, "10.198.0.2", 8080)
        change(mesh, [replace(mesh.server.workload, protocol=TunnelProtocol.NONE)])
        go_on(mesh)
        assert heard(mesh, listener) == "HBONE"


def test_what_has_nothing_to_do_with_it_changes_nothing(mesh: World) -> None:
    others = [
        replace(mesh.server.workload, uid=f"o{n}", name=f"o{n}", addresses=(ip_address(f"10.198.0.{n}"),)) for n in (88, 89)
    ]
    with mesh.server.listen(8080) as listener:
        waiting(mesh, VIP, 80)
        change(mesh, [replace(one, capacity=10**6) for one in others])
        go_on(mesh)
        assert (
            heard(mesh, listener) == "HBONE"
        )  # at the endpoint that was chosen first, though hardly anybody would choose it now


def test_who_enters_the_mesh_while_it_is_dialled_is_reached_by_mutual_tls(mesh: World) -> None:
    """It was known, and not of the mesh. By the time it takes the connection, it is."""
    go_on(mesh)
    plain = replace(mesh.server.workload, protocol=TunnelProtocol.NONE, addresses=(ip_address(SILENT),))
    change(mesh, [plain])
    with mesh.server.listen(8080) as listener:
        dialling(mesh, SILENT, 8080)
        for pod in (mesh.client, mesh.server):
            tell(pod, UpdateInventory([replace(plain, protocol=TunnelProtocol.HBONE)], []))
        nft(mesh, "delete", "table", "inet", "silence")
        assert heard(mesh, listener) == "HBONE"


def test_a_pod_that_moves_here_waits_until_it_is_known_to_be_here(mesh: World) -> None:
    """What is known of it where it was before, such as its policies, is of a pod that is no more."""
    mesh.server.worker.tell(UpdateInventory([replace(mesh.server.workload, node="elsewhere")], []))
    go_on(mesh)
    with mesh.server.listen(8080) as listener:
        mesh.client.connect("10.198.0.2", 8080).sendall(b"secret")
        mesh.server.worker.wait_for(WorkerStatus, lambda status: status.gauges["waiting_for_workload"] == 1)
        mesh.server.worker.tell(UpdateInventory([mesh.server.workload], []))
        assert heard(mesh, listener) == "HBONE"


def test_a_service_that_goes_with_its_endpoint_is_not_dialled_in_plain(mesh: World) -> None:
    """An endpoint that refuses is followed by another one, not by the address of a service that is gone."""
    go_on(mesh)
    change(mesh, [replace(mesh.server.workload, addresses=(ip_address(SILENT),))])
    client = dialling(mesh, VIP, 80)
    change(mesh, [], [mesh.service.key, mesh.server.workload.uid])
    tell(mesh.server, RemovePod(mesh.server.name))  # so that its port refuses
    nft(mesh, "delete", "table", "inet", "silence")
    record = mesh.client.worker.closed()
    assert (record.protocol, record.destination) == ("HBONE", (ip_address(SILENT), 15008)), record
    assert record.error.startswith("io error: Connection refused (os error 111)")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
