"""The proxy's own pod: mutual TLS to the proxy's own ports, such as its metrics."""

from dataclasses import replace

import pytest

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, assert_reset, world
from wire.netns import entered
from ztunnel.channel import HBONE, AddPod, PodAdded, UpdateInventory
from ztunnel.config import read_config
from ztunnel.pod_sockets import Openings, open_own_sockets


@pytest.mark.kernel
def test_hbone_metrics_access() -> None:
    """Who scrapes is a workload of the mesh; what is scraped sees the proxy, not the client, and has no other listener."""
    with world("own", "proxy") as mesh:
        proxy = mesh.pods["proxy"]
        metrics = replace(proxy.workload, service_account="server", node="node-server")
        mesh.start()
        mesh.client.worker.tell(UpdateInventory([metrics], []))
        mesh.server.worker.tell(UpdateInventory([metrics], []))
        with entered(proxy.fd, mesh.home_fd):
            sockets = open_own_sockets(proxy.fd, Openings(0x539))
        mesh.server.worker.tell(AddPod("own", "shop", "proxy", "server", own=True, ports=(HBONE,)), sockets.fds())
        sockets.close()
        assert mesh.server.worker.wait_for(PodAdded).error == ""
        with proxy.listen(15020) as listener, mesh.client.connect(proxy.address, 15020) as client:
            client.sendall(b"GET /metrics")
            server, (peer, _) = listener.accept()
            with server:
                assert server.recv(100) == b"GET /metrics" and peer == proxy.address
                server.sendall(b"# EOF")
                assert client.recv(100) == b"# EOF"
        theirs = mesh.server.worker.closed()
        assert (theirs.pod_uid, theirs.source_identity) == ("own", CLIENT)
        assert theirs.destination_identity == Identity("cluster.local", "shop", "server")
        assert_reset(lambda: mesh.client.connect(proxy.address, 15008))  # no way round to the proxy's own ports
        with pytest.raises(ConnectionRefusedError):
            proxy.connect("127.0.0.1", 15006)
        mesh.server.worker.tell(AddPod("bad", "shop", "proxy", "server", own=True, ports=(HBONE,)), [proxy.fd])
        assert mesh.server.worker.wait_for(PodAdded).error == "expected 2 descriptors or more, got 1"


@pytest.mark.unit
@pytest.mark.parametrize("missing", ["", "POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"])
def test_it_is_served_only_when_all_three_names_are_known(missing: str) -> None:
    names = {"POD_NAME": "ztunnel-1", "POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel"}
    names.pop(missing, None)
    config = read_config(["--node", "n1"], names, 1)
    assert config.service_account == ("" if missing else "ztunnel")
