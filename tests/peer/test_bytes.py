"""Bulk between weft's ztunnel and Istio's: nothing lost, nothing added, a slow reader holds the writer back and nobody else."""

from concurrent.futures import Future

import pytest

from tests.peer.cross import CROSSINGS, ECHO_PORT, CrossMesh

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

GIB = 1 << 30
PORT = 7003
SLOW = 256 << 20
"""Bytes a second."""
STANDSTILL_MIB = 64
"""What may be under way while nobody reads: windows of both proxies, and the kernel's buffers of four sockets."""


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_1_gib_to_a_slow_reader_beside_a_live_stream(cross: CrossMesh, client: str, server: str, upload: bool) -> None:
    with (
        cross.puppet(server).listen(PORT) as listener,
        cross.puppet(client).connect(cross.address(server), ECHO_PORT) as small,
        cross.puppet(client).connect(cross.address(server), PORT) as near_end,
        listener.accept() as far_end,
    ):
        writer, reader = (near_end, far_end) if upload else (far_end, near_end)
        sent: Future[str] = writer.puppet.start("pour", writer.number, GIB)
        underway = writer.standstill()
        assert 0 < underway < STANDSTILL_MIB << 20, "back-pressure reaches the writer"
        assert small.says("beside it"), "another stream of the same tunnel does not wait"
        came = reader.puppet.do("drain", reader.number, SLOW, timeout_s=100)
        assert came == {"size": GIB, "sha256": sent.result(5)}
        assert small.says("after it")


@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_both_directions_at_once(cross: CrossMesh, client: str, server: str) -> None:
    with (
        cross.puppet(server).listen(PORT) as listener,
        cross.puppet(client).connect(cross.address(server, 6), PORT) as near_end,
        listener.accept() as far_end,
    ):
        near_end.assert_both_ways(far_end, 64 << 20)
