"""A mesh that is known in part: who would decide by it waits for the rest."""

import socket

import pytest

from tests.ztunnel.world import CLIENT, SERVER, VIP, world
from ztunnel.channel import UpdateInventory, WorkerStatus
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel


def test_a_connection_waits_until_all_is_known_and_then_goes_where_it_should() -> None:
    """Without the service the address would be anybody's, and the connection leave in plain text."""
    with world("unfinished") as mesh:
        client, server = mesh.client, mesh.server
        client.configuration = {"tuning": Tuning(workload_timeout_s=60.0)}  # whatever a busy machine does meanwhile
        client.start([], [mesh.authority.certificate_for(CLIENT)])
        server.start(mesh.inventory, [mesh.authority.certificate_for(SERVER)])
        client.worker.tell(UpdateInventory([client.workload], [], unfinished=True))
        with server.listen(8080) as app, client.connect(VIP, 80) as sock:
            sock.sendall(b"a")
            client.worker.tell(UpdateInventory([], [], unfinished=True))
            assert client.worker.catch_up() == []
            assert {type(message) for message in client.worker.heard} <= {WorkerStatus}, "nothing has opened or failed"
            client.worker.tell(UpdateInventory([server.workload, mesh.service], []))
            app.settimeout(40)
            accepted, _ = app.accept()
            accepted.settimeout(40)
            with accepted:
                assert accepted.recv(1) == b"a"
                accepted.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        assert client.worker.closed().protocol == "HBONE"
