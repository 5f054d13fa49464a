"""Bytes through the whole mesh: none lost, none added, ends and resets where they belong, addresses that tell the truth."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from lab.cgroup import processes
from tests.lab.memory import Memory
from tests.lab.mesh import ECHO_PORT, Mesh
from tests.lab.puppet import Listener, Puppet, Wire
from tests.lab.world import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

GIB = 1 << 30
PORT = 7001
SERVERS = ("near", "far")
SLOW = 128 << 20
"""Bytes a second."""
STANDSTILL_MIB = 32
"""What may be under way while nobody reads: a stream's windows, and the kernel's buffers of four sockets."""
MEMORY_MIB = 32
"""By how much all of weft's processes together may grow while a reader is slow: windows of 4 MiB a stream, at both ends."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        for name in SERVERS:
            made.puppet(name).echo(ECHO_PORT)
        yield made


@pytest.fixture
def client(mesh: Mesh) -> Puppet:
    return mesh.puppet("client")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, mesh: Mesh) -> Iterator[Listener]:
    with mesh.puppet(request.param).listen(PORT) as listener:
        yield listener


@pytest.fixture(params=SERVERS)
def pair(request: pytest.FixtureRequest, mesh: Mesh, client: Puppet) -> Iterator[tuple[Wire, Wire]]:
    with (
        mesh.puppet(request.param).listen(PORT) as listener,
        client.connect(mesh.address(request.param), PORT) as near_end,
        listener.accept() as far_end,
    ):
        yield near_end, far_end


def all_of_weft(mesh: Mesh) -> list[int]:
    """The processes of agents, proxies and control."""
    pids = [pid for node in "ab" for part in ("agent", "ztunnel") for pid in mesh.processes(node, part)]
    return pids + processes(mesh.layout.control_cgroup)


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_1_gib_through_a_slow_reader_in_bounded_memory(mesh: Mesh, client: Puppet, upload: bool) -> None:
    with (
        mesh.puppet("far").listen(PORT) as listener,
        client.connect(mesh.address("far"), PORT) as near_end,
        listener.accept() as far_end,
        Memory(all_of_weft(mesh)) as memory,
    ):
        writer, reader = (near_end, far_end) if upload else (far_end, near_end)
        sent: Future[str] = writer.puppet.start("pour", writer.number, GIB)
        underway = writer.standstill()
        assert 0 < underway < STANDSTILL_MIB << 20, "back-pressure reaches the writer"
        came = reader.puppet.do("drain", reader.number, SLOW, timeout_s=300)
        assert came == {"size": GIB, "sha256": sent.result(60)}
    growth = sum(memory.growth.values())
    print(f"{underway >> 20} MiB under way while nobody reads; PSS of all processes grew by {growth:.1f} MiB at most")
    assert growth < MEMORY_MIB, (memory.before, memory.highest)


@pytest.mark.parametrize(
    ("name", "to"),
    [("client", "far"), ("client", "near"), ("outsider", "near"), ("client", "outsider")],
    ids=["across nodes", "same node", "plain in", "plain out"],
)
def test_both_directions_at_once(mesh: Mesh, name: str, to: str) -> None:
    """Neither waits for the other, on any kind of path."""
    with (
        mesh.puppet(to).listen(PORT) as listener,
        mesh.puppet(name).connect(mesh.address(to, 6), PORT) as near_end,
        listener.accept() as far_end,
    ):
        near_end.assert_both_ways(far_end, 64 << 20)


def test_either_side_may_finish_first_and_still_hear_the_other(pair: tuple[Wire, Wire]) -> None:
    for first, second in (pair, pair[::-1]):
        first.send("before")
        assert second.receive(6) == "before"
    near_end, far_end = pair
    near_end.finish()
    assert far_end.ended() == "end"
    far_end.send("after")
    assert near_end.receive(5) == "after"
    far_end.finish()
    assert near_end.ended() == "end"


def test_a_server_may_finish_first(pair: tuple[Wire, Wire]) -> None:
    near_end, far_end = pair
    far_end.send("greeting")
    far_end.finish()
    assert near_end.receive(9) == "greeting"
    near_end.send("after")
    assert far_end.receive(5) == "after"
    near_end.finish()
    assert far_end.ended() == "end"


@pytest.mark.parametrize("of_client", [True, False], ids=["client", "server"])
def test_a_reset_reaches_the_other_side(pair: tuple[Wire, Wire], of_client: bool) -> None:
    near_end, far_end = pair
    near_end.send("x")
    assert far_end.receive(1) == "x"
    breaking, other = pair if of_client else pair[::-1]
    breaking.close(reset=True)
    assert other.ended() == "reset"


def test_500_connections_at_once_each_with_its_own_bytes_both_ways(mesh: Mesh, client: Puppet) -> None:
    assert client.do("crowd", mesh.address("far"), ECHO_PORT, 500, 64 << 10, timeout_s=250) == {"same": 500}
    eventually(lambda: mesh.weft("connections", "-o", "json").strip() == "[]")


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_written_by_a_program_that_is_gone_arrives(mesh: Mesh, client: Puppet, name: str) -> None:
    times = 50
    with mesh.puppet(name).listen(PORT) as listener:
        client.do("connect_write_close", mesh.address(name), PORT, "last words", times)
        for _ in range(times):
            with listener.accept() as wire:
                assert wire.receive(100) == "last words"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SERVERS)
def test_a_closed_port_resets_and_says_so(mesh: Mesh, client: Puppet, name: str, version: int) -> None:
    address = mesh.address(name, version)
    assert client.fate(address, 7999) == "reset", "what is there is known after connect() only"
    flow = mesh.await_flow("Connection refused", "--to-port", "7999", "--to-ip", address, "--verdict", "ERROR")
    assert flow["destination"]["pod_name"] == name


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("through_service", [False, True], ids=["address", "service"])
@pytest.mark.parametrize("name", SERVERS)
def test_everybody_is_told_the_truth(mesh: Mesh, client: Puppet, name: str, version: int, through_service: bool) -> None:
    dialled = _service_address(mesh, name, version) if through_service else mesh.address(name, version)
    own, server = mesh.address("client", version), mesh.address(name, version)
    with client.connect(dialled, ECHO_PORT) as wire:
        assert wire.says("hello")
        names = wire.names()
        assert names["local"][0] == own
        assert names["peer"] == [dialled, ECHO_PORT]
    with mesh.puppet(name).listen(PORT) as listener, client.connect(server, PORT), listener.accept() as accepted:
        names = accepted.names()
        assert names["original"] is None, "SO_ORIGINAL_DST is for proxies: nothing of this app's was translated"
        assert _plain(names["peer"][0]) == own, "the server sees the client's own address"
        assert [_plain(names["local"][0]), names["local"][1]] == [server, PORT]


def _service_address(mesh: Mesh, name: str, version: int) -> str:
    text = mesh.output("shop/client", "getent", f"ahostsv{version}", name)
    return text.split()[0]


def _plain(address: Any) -> str:
    return str(address).removeprefix("::ffff:")
