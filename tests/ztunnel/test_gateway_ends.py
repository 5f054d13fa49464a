"""How tunnels in tunnels end, and what becomes of a connection whose outer tunnel was gone before it came."""

import socket
from collections.abc import Iterator

import pytest

from tests.ztunnel.test_worker_gateway import MiB, Relay, connected, networks, relayed
from tests.ztunnel.world import SERVER, World, patched, run
from ztunnel.channel import CertificateFailed, WorkerStatus
from ztunnel.closing import reset_on_close
from ztunnel.frames import Sizes
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

# A peer is taken for one that may be gone however lately it was heard, and for one that takes nothing after some seconds. It is
# not asked whether it is there: that would be how its end is noticed, on a machine that is slow enough.
_CLIENT = patched(
    "from ztunnel import keep_alive",
    "keep_alive.PING_INTERVAL_S = 1000.0",
    "from ztunnel import http2, node",
    "http2.HEARD_LATELY_S, node.LINGER_S = 0.0, 4.0",
)
MUCH = 3 * MiB
"""More than a gateway's socket takes, and less than a stream may carry."""


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with networks("ends", _CLIENT, Tuning(sizes=Sizes(stream_window=16 * MiB))) as mesh:
        yield mesh


@pytest.fixture
def relay(shared: World) -> Iterator[Relay]:
    with relayed(shared) as relay:
        yield relay


def test_a_connection_is_not_lost_in_a_tunnel_to_a_gateway_that_is_gone_without_a_word(shared: World, relay: Relay) -> None:
    """Nothing was said to anybody behind it, so another tunnel to the same gateway carries it."""
    with shared.server.listen(8080) as listener:
        for sock in connected(shared, listener):
            sock.close()
        shared.client.worker.closed()
        for pod in ("gateway", "client"):  # nobody has anything left to say that would tell of the end of the tunnel
            shared.pods[pod].worker.settle()
        for _ in range(2):  # nor has the kernel, which acknowledges it in between
            idle = shared.client.worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 1)
        gateway = shared.pods["gateway"].netns
        run("ip", "-n", gateway, "route", "add", "blackhole", f"{shared.client.address}/32")
        run("ip", "netns", "exec", gateway, "ss", "-K", "state", "established", "sport", "=", ":15008")
        run("ip", "-n", gateway, "route", "del", "blackhole", f"{shared.client.address}/32")
        client, server = connected(shared, listener)
        client.sendall(b"all that I say")
        assert server.recv(100) == b"all that I say"
        client.close()
        server.close()
    record = shared.client.worker.closed()
    assert (record.protocol, record.error, record.bytes_sent) == ("DOUBLEHBONE", "", 14)
    shared.client.worker.wait_for(
        WorkerStatus, lambda said: said.gauges["endpoint_retries"] == idle.gauges["endpoint_retries"] + 1
    )


def test_what_nobody_takes_of_a_connection_that_has_ended_is_not_kept(shared: World, relay: Relay) -> None:
    """The last bytes leave as long as the gateway takes any. Where it takes none, who is behind it may talk on for ever."""
    with shared.server.listen(8080) as listener:
        client, server = connected(shared, listener)
        relay.flows.clear()
        client.settimeout(1)
        with pytest.raises((BlockingIOError, TimeoutError)):
            while True:
                client.send(bytes(MiB))
        reset_on_close(client)
        client.close()
        shared.client.worker.closed()
        shared.client.worker.heard.clear()
        shared.client.worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 1, timeout_s=25)
        shared.pods["gateway"].worker.closed()
        server.close()


def test_the_last_bytes_arrive_whatever_is_said_behind_a_gateway_meanwhile(shared: World, relay: Relay) -> None:
    """It is heard until the gateway ends its stream: a reset in answer to it would overtake them."""
    with shared.server.listen(8080) as listener:
        client, server = connected(shared, listener)
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        relay.flows.clear()
        client.sendall(bytes(MUCH))
        client.close()
        assert shared.client.worker.closed().error == ""
        relay.answered.clear()
        shared.server.worker.tell(CertificateFailed(SERVER, "withdrawn"))  # its proxy says GOAWAY
        assert relay.answered.wait(40)
        for pod in ("gateway", "client", "gateway"):  # they have heard it, and what any of them makes of it
            shared.pods[pod].worker.catch_up()
        relay.flows.set()
        received = 0
        while part := server.recv(MiB):
            received += len(part)
        assert received == MUCH
        server.close()
    shared.server.worker.tell(shared.papers)  # type: ignore[attr-defined]
