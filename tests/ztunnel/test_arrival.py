"""Who comes to a pod from outside while something is missing here: its workload, its certificate, its application, room."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ztunnel.test_enforcement import allow
from tests.ztunnel.test_statuses import CONNECT, Asker
from tests.ztunnel.world import SERVER, World, assert_reset, world
from wire.netns import entered
from ztunnel.channel import (
    Answered,
    CertificateFailed,
    Closed,
    Demand,
    ForgetCertificate,
    NeedCertificate,
    UpdateInventory,
    UpdatePolicies,
)
from ztunnel.frames import Code
from ztunnel.limits import Limits
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

TO_APPLICATION = CONNECT, (":authority", "10.198.0.2:8080")


@pytest.fixture
def mesh() -> Iterator[World]:
    with world("arrival") as made:
        made.server.configuration["tuning"] = Tuning(workload_timeout_s=0.2, connect_timeout_s=100.0)
        made.start()
        yield made


def tell_server(mesh: World, *messages: object) -> None:
    """It has taken in all of them when this returns."""
    for message in messages:
        mesh.server.worker.tell(message)
    mesh.server.worker.catch_up()


def speak(mesh: World) -> socket.socket:
    """A stranger's first word, after which it is asked for whom it came."""
    sock = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
    sock.sendall(b"\x16")
    return sock


def is_dialling(mesh: World) -> bool:
    """Whether a connection is being made in the server's pod: one in SYN_SENT."""
    with entered(mesh.server.fd, mesh.home_fd):
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()
    return any(line.split()[3] == "02" for line in lines[1:])


def test_no_request_reaches_a_pod_of_which_nothing_is_known_any_more(mesh: World) -> None:
    asker, known = Asker(mesh), mesh.server.workload
    with mesh.server.listen(8080):
        assert asker.ask(*TO_APPLICATION) == ("200", -1)
        tell_server(mesh, UpdateInventory([], [known.uid]))
        assert asker.ask(*TO_APPLICATION) == ("503", Code.NO_ERROR)
        mesh.server.worker.early("unknown destination")
        tell_server(mesh, UpdateInventory([known], []))
        assert asker.ask(*TO_APPLICATION) == ("200", -1)
        asker.close()


def test_nobody_is_greeted_for_a_pod_of_which_nothing_is_known(mesh: World) -> None:
    tell_server(mesh, UpdateInventory([], [mesh.server.workload.uid]))
    assert_reset(lambda: speak(mesh))
    assert mesh.server.worker.early("unknown destination: no workload for pod shop/server").flag == "IDENTITY_ERROR"


def test_nobody_is_greeted_without_a_certificate(mesh: World) -> None:
    tell_server(mesh, ForgetCertificate(SERVER))
    with speak(mesh) as sock:
        mesh.server.worker.wait_for(NeedCertificate)
        mesh.server.worker.tell(CertificateFailed(SERVER, "the CA is away"))
        assert_reset(lambda: sock)
    assert mesh.server.worker.early("the CA is away").flag == "IDENTITY_ERROR"


def test_a_pod_that_is_full_takes_no_more_requests() -> None:
    with world("full") as mesh:
        mesh.server.configuration["pod_limits"] = Limits(connections=3, streams=9, handshakes=9, buffered_bytes=1 << 20)
        mesh.start()
        asker = Asker(mesh)
        with mesh.server.listen(8080):
            answers = [asker.ask(*TO_APPLICATION) for _ in range(3)]
            asker.close()
        assert answers == [("200", -1), ("200", -1), ("503", Code.NO_ERROR)], "its tunnel is one of the three"
        mesh.server.worker.early("too many connections")


def test_a_policy_ends_what_has_not_reached_its_application_yet(mesh: World) -> None:
    """The application accepts nobody, so that the second connection is on its way for long."""
    asker = Asker(mesh)
    with mesh.server.listen(8080) as app:
        app.listen(0)
        assert asker.ask(*TO_APPLICATION) == ("200", -1)
        asker.say(*TO_APPLICATION)
        while not is_dialling(mesh):
            tell_server(mesh)
        tell_server(mesh, UpdatePolicies([allow("somebody")], []))
        ended = [mesh.server.worker.wait_for(Closed) for _ in range(2)]
        assert sorted((one.record.flag, one.was_open) for one in ended) == [("DENY", False), ("DENY", True)]
        tell_server(mesh)
        assert not is_dialling(mesh)
        asker.close()


def test_plain_text_for_an_application_that_is_not_there_is_reset(mesh: World) -> None:
    assert_reset(lambda: mesh.client.connect(mesh.server.address, 9999, mark=0x539))
    record = mesh.server.worker.closed()
    assert (record.protocol, record.flag, record.destination[1]) == ("TCP", "CONNECT", 9999)
    assert record.error.startswith("connection failed")


def test_a_request_that_waited_is_judged_by_what_is_known_then() -> None:
    """On demand: while its target is asked for, its pod's workload may go."""
    with world("waited") as mesh:
        mesh.server.configuration = {"on_demand": True, "tuning": Tuning(workload_timeout_s=100.0)}
        mesh.start()
        asker = Asker(mesh)
        asker.say(CONNECT, (":authority", "10.199.0.9:80"))
        mesh.server.worker.wait_for(Demand, lambda demand: "/10.199.0.9" in demand.names)
        tell_server(mesh, UpdateInventory([], [mesh.server.workload.uid]), Answered({"/10.199.0.9": ""}))
        mesh.server.worker.early("unknown destination")
        asker.close()
