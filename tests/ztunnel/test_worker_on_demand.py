"""A worker that is told nothing unasked: connections wait for what it asks, and go nowhere without an answer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.workload import GatewayAddress, NamespacedHostname, NetworkAddress, Service, TunnelProtocol, Workload
from tests.ztunnel.world import CLIENT, SERVER, VIP, PodWorld, World, assert_reset, world
from ztunnel.channel import Answered, Demand, RemovePod, Unasked, UpdateInventory
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

WAYPOINT = GatewayAddress(NamespacedHostname("shop", "wp.shop.svc.cluster.local"), 15008)
WAYPOINT_SERVICE = Service("wp", "shop", "wp.shop.svc.cluster.local", (), {15008: 15008})


@pytest.fixture
def mesh() -> Iterator[World]:
    """Each worker knows its own pod."""
    with on_demand(Tuning(workload_timeout_s=30)) as made:
        yield made


@pytest.fixture
def hasty() -> Iterator[World]:
    """And gives what it asks for a short time."""
    with on_demand(Tuning(workload_timeout_s=8.0)) as made:
        yield made


@contextmanager
def on_demand(tuning: Tuning) -> Iterator[World]:
    with world("ondemand") as made:
        for pod, identity in ((made.client, CLIENT), (made.server, SERVER)):
            pod.configuration = {"on_demand": True, "tuning": tuning}
            pod.start([pod.workload], [made.authority.certificate_for(identity)])
        yield made


def asked(pod: PodWorld, *names: str) -> None:
    """The worker asks for these names."""
    pod.worker.wait_for(Demand, lambda demand: set(names) <= set(demand.names))


def tell(pod: PodWorld, *resources: Workload | Service, answers: dict[str, str]) -> None:
    pod.worker.tell(UpdateInventory(list(resources), []))
    pod.worker.tell(Answered(answers))


def test_a_connection_waits_until_its_destination_is_known(mesh: World) -> None:
    with mesh.server.listen(8080) as listener, mesh.client.connect(VIP, 80) as client:
        client.sendall(b"patience")
        asked(mesh.client, f"/{VIP}")
        tell(mesh.client, mesh.service, mesh.server.workload, answers={f"/{VIP}": ""})
        server, _ = listener.accept()
        with server:
            assert server.recv(100) == b"patience"
            client.close()
            assert server.recv(100) == b""
    assert mesh.client.worker.closed().protocol == "HBONE"
    assert mesh.server.worker.closed().source_workload == ""
    asked(mesh.server, f"/{mesh.client.address}")


def test_what_the_control_plane_does_not_know_is_passed_through(mesh: World) -> None:
    with mesh.server.listen(8080) as listener, mesh.client.connect(mesh.server.address, 8080) as client:
        asked(mesh.client, f"/{mesh.server.address}")
        tell(mesh.client, answers={f"/{mesh.server.address}": ""})
        server, _ = listener.accept()
        server.close()
        assert client.recv(1) == b""
    assert mesh.client.worker.closed().protocol == "TCP"


@pytest.mark.parametrize("dialled", ["service", "address"])
@pytest.mark.parametrize("is_pod", [True, False])
def test_an_entrys_address_is_not_dialled_in_plain_before_it_is_known_to_be_no_pods(
    mesh: World, dialled: str, is_pod: bool
) -> None:
    """A pod of the mesh that was not fetched yet is reached by mutual TLS all the same."""
    uid = f"Kubernetes/networking.istio.io/ServiceEntry/shop/web/{mesh.server.address}"
    entry = replace(mesh.server.workload, uid=uid, protocol=TunnelProtocol.NONE)
    address, port = (VIP, 80) if dialled == "service" else (mesh.server.address, 8080)
    tell(mesh.client, mesh.service, entry, answers={})
    with mesh.server.listen(8080) as listener, mesh.client.connect(address, port) as client:
        client.sendall(b"patience")
        asked(mesh.client, f"/{mesh.server.address}")
        pods = [replace(mesh.server.workload, services={})] if is_pod else []
        tell(mesh.client, *pods, answers={f"/{mesh.server.address}": ""})
        server, _ = listener.accept()
        with server:
            assert server.recv(100) == b"patience"
            client.close()
            assert server.recv(100) == b""
    assert mesh.client.worker.closed().protocol == ("HBONE" if is_pod else "TCP")


def test_nobody_gets_past_a_waypoint_that_is_not_told_of(hasty: World) -> None:
    web = replace(hasty.service, waypoint=WAYPOINT)
    with hasty.client.connect(VIP, 80) as client:
        asked(hasty.client, f"/{VIP}")
        tell(hasty.client, web, hasty.server.workload, answers={f"/{VIP}": ""})
        asked(hasty.client, WAYPOINT_SERVICE.key)
        assert_reset(lambda: client)
    assert f"did not tell of {WAYPOINT_SERVICE.key} within 8 s" in hasty.client.worker.closed().error


def test_a_connection_goes_by_a_waypoint_that_becomes_known_while_it_waits(mesh: World) -> None:
    web = replace(mesh.service, waypoint=WAYPOINT)
    served = replace(mesh.server.workload, services={WAYPOINT_SERVICE.key: {}})
    with mesh.server.listen(80) as listener, mesh.client.connect(VIP, 80) as client:
        asked(mesh.client, f"/{VIP}")
        tell(mesh.client, web, mesh.server.workload, answers={f"/{VIP}": ""})
        asked(mesh.client, WAYPOINT_SERVICE.key)
        tell(mesh.client, WAYPOINT_SERVICE, served, answers={WAYPOINT_SERVICE.key: ""})
        client.sendall(b"early")
        # The waypoint asks too: whose address is that, and who am I to it?
        asked(mesh.server, f"/{VIP}")
        tell(mesh.server, web, served, answers={f"/{VIP}": ""})
        asked(mesh.server, WAYPOINT_SERVICE.key)
        tell(mesh.server, WAYPOINT_SERVICE, answers={WAYPOINT_SERVICE.key: ""})
        server, _ = listener.accept()
        with server:
            assert server.recv(100) == b"early"
    assert mesh.server.worker.closed().hbone_destination == f"{VIP}:80"


def test_a_service_that_nobody_serves_any_more_is_asked_for_again(mesh: World) -> None:
    """Its pods were replaced: istiod told that the old ones are gone, and nothing of the new ones."""
    mesh.client.worker.tell(UpdateInventory([mesh.service], []))
    with mesh.server.listen(8080) as listener, mesh.client.connect(VIP, 80) as client:
        client.sendall(b"anew")
        asked(mesh.client, mesh.service.key)
        tell(mesh.client, mesh.service, mesh.server.workload, answers={mesh.service.key: ""})
        server, _ = listener.accept()
        with server:
            assert server.recv(100) == b"anew"


def test_an_inbound_request_without_answer_or_refused_is_503(hasty: World) -> None:
    stranger = replace(hasty.service, vips=(NetworkAddress("", ip_address("10.199.0.9")),), waypoint=WAYPOINT)
    served = replace(hasty.server.workload, services={WAYPOINT_SERVICE.key: {}})
    tell(hasty.client, stranger, WAYPOINT_SERVICE, served, answers={})
    for answers, words in (({}, "did not tell of /10.199.0.9"), ({"/10.199.0.9": "unknown enum"}, "/10.199.0.9: unknown enum")):
        with hasty.client.connect("10.199.0.9", 80) as client:
            asked(hasty.server, "/10.199.0.9")
            tell(hasty.server, answers=answers)
            assert_reset(lambda: client)
        assert "503" in hasty.client.worker.closed().error
        assert words in hasty.server.worker.early("10.199.0.9").error


def test_a_peer_that_names_strangers_uses_up_its_own_share() -> None:
    """Eight names at once are its share: its ninth CONNECT is 503, while the pod that it asks at asks on."""
    vips = tuple(NetworkAddress("", ip_address(f"10.199.0.{number}")) for number in range(1, 10))
    with on_demand(Tuning(questions_per_s=0.001, workload_timeout_s=60)) as mesh, ExitStack() as held:
        service = replace(mesh.service, vips=vips, waypoint=WAYPOINT)
        served = replace(mesh.server.workload, services={WAYPOINT_SERVICE.key: {}})
        tell(mesh.client, service, WAYPOINT_SERVICE, served, answers={})
        for number in range(1, 9):
            held.enter_context(mesh.client.connect(f"10.199.0.{number}", 80))
            asked(mesh.server, f"/10.199.0.{number}")
        assert_reset(lambda: mesh.client.connect("10.199.0.9", 80))
        assert "asks for too much (WEFT_QUESTIONS_PER_POD)" in mesh.server.worker.early("10.199.0.9").error
        assert mesh.server.worker.wait_for(Unasked).identity == CLIENT
        held.enter_context(mesh.server.connect("10.199.0.20", 80))
        asked(mesh.server, "/10.199.0.20")


def test_a_refused_answer_ends_the_connection_with_its_reason(mesh: World) -> None:
    with mesh.client.connect(VIP, 80) as client:
        asked(mesh.client, f"/{VIP}")
        tell(mesh.client, answers={f"/{VIP}": "failed to parse address, had 3 bytes"})
        assert_reset(lambda: client)
    assert mesh.client.worker.closed().error == f"/{VIP}: failed to parse address, had 3 bytes"


def test_who_waits_goes_with_its_pod(mesh: World) -> None:
    with mesh.client.connect(VIP, 80) as client:
        asked(mesh.client, f"/{VIP}")
        mesh.client.worker.tell(RemovePod("client"))
        assert_reset(lambda: client)
    assert "drain" in mesh.client.worker.early("drain").error
    mesh.client.worker.tell(Answered({f"/{VIP}": ""}))
    mesh.client.worker.settle()


def test_the_pods_own_workload_is_asked_for(mesh: World) -> None:
    mesh.client.worker.tell(UpdateInventory([], [mesh.client.workload.uid]))
    with mesh.server.listen(8080) as listener, mesh.client.connect(VIP, 80):
        asked(mesh.client, mesh.client.workload.uid)
        tell(mesh.client, *mesh.inventory, answers={mesh.client.workload.uid: ""})
        listener.accept()[0].close()


def test_a_client_that_gives_up_while_it_waits_leaves_nothing_behind(mesh: World) -> None:
    for _ in range(3):
        mesh.client.connect(VIP, 80).close()
    asked(mesh.client, f"/{VIP}")
    tell(mesh.client, answers={f"/{VIP}": "nothing"})
    for _ in range(3):
        mesh.client.worker.closed()
    mesh.client.worker.settle()
