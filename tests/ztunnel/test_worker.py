"""Two real workers, two pods, real TLS: bytes, ends, accounts. The redirect is nftables, as istio-cni makes it."""

import hashlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice

import pytest

from bench.accounts import cpu_s
from mesh.workload import TunnelProtocol, Workload
from tests.ztunnel.world import CLIENT, SERVER, VIP, WorkerProcess, World, assert_reset, world
from ztunnel.channel import (
    AddPod,
    CertificateFailed,
    Closed,
    ForgetCertificate,
    NeedCertificate,
    Opened,
    PodAdded,
    Profile,
    ProfileKind,
    Progress,
    RemovePod,
    Shutdown,
    Stack,
    TakeProfile,
    UpdateInventory,
    WorkerStatus,
)
from ztunnel.frames import LARGEST_FRAME_BYTES, Sizes
from ztunnel.tuning import Tuning
from ztunnel.walk import ENDINGS_PER_TURN

pytestmark = pytest.mark.kernel

MiB = 1 << 20


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world("worker") as made:
        for pod in made.pods.values():
            pod.configuration = {"tuning": Tuning(workload_timeout_s=60.0)}  # whatever a busy machine does meanwhile
        made.start()
        yield made


@pytest.fixture
def mesh(shared: World) -> Iterator[World]:
    """The shared world, with nothing heard before and nothing left open after."""
    shared.settle()
    yield shared
    shared.reset_sockets()


@pytest.fixture
def app(mesh: World) -> Iterator[socket.socket]:
    with mesh.server.listen(8080) as listener:
        yield listener


def accept(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.settimeout(40)
    return sock


def connected(mesh: World, app: socket.socket, address: str = VIP, port: int = 80) -> tuple[socket.socket, socket.socket]:
    client = mesh.client.connect(address, port)
    return client, accept(app)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_request_by_service_address_and_what_is_told_about_it(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app)
    assert server.getpeername()[0] == mesh.client.address  # the application sees the client, not a proxy
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"the answer")
    assert client.recv(100) == b"the answer"
    opened = mesh.client.worker.wait_for(Opened).record
    assert (opened.bytes_sent, opened.bytes_received, opened.duration_ns) == (0, 0, 0)
    client.close()
    server.close()
    mine, theirs = mesh.client.worker.closed(), mesh.server.worker.closed()
    assert mine.number == opened.number and mine.direction == "outbound" and theirs.direction == "inbound"
    assert (
        mine.protocol == theirs.protocol == "HBONE" and mine.flag == theirs.flag == "-" and not mine.error and not theirs.error
    )
    assert (mine.bytes_sent, mine.bytes_received) == (8, 10) == (theirs.bytes_received, theirs.bytes_sent)
    assert str(mine.original_destination[0]) == VIP if mine.original_destination else False
    assert mine.hbone_destination == theirs.hbone_destination == f"{mesh.server.address}:8080"
    assert mine.destination[1] == theirs.destination[1] == 15008
    assert mine.source_identity == theirs.source_identity == CLIENT
    assert mine.destination_identity == theirs.destination_identity == SERVER
    assert mine.source_workload == theirs.source_workload == mesh.client.workload.uid
    assert mine.destination_service == theirs.destination_service == mesh.service.key
    assert (mine.forwarded_host, theirs.forwarded_host) == ("", mesh.service.hostname)
    assert mine.duration_ns > 0 and mine.opened_unix_ns > 1e18


def test_a_service_that_is_only_guessed_was_not_named(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app, mesh.server.address, 8080)
    client.close()
    server.close()
    theirs = mesh.server.worker.closed()
    assert (theirs.destination_service, theirs.forwarded_host) == (mesh.service.key, "")


def test_bytes_are_counted_while_a_connection_is_open(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app)
    client.sendall(b"12345678")
    assert server.recv(100) == b"12345678"
    number = mesh.client.worker.wait_for(Opened).record.number
    assert mesh.client.worker.wait_for(Progress).counts == [(number, 8, 0)]
    assert mesh.server.worker.wait_for(Progress).counts[0][1:] == (0, 8)
    client.close()
    server.close()


def test_both_families_by_workload_address(mesh: World) -> None:
    for family, address in ((socket.AF_INET, mesh.server.address), (socket.AF_INET6, mesh.server.address6)):
        with mesh.server.listen(9100, family) as listener:
            client, server = connected(mesh, listener, address, 9100)
            assert server.getpeername()[0] == (mesh.client.address if family == socket.AF_INET else mesh.client.address6)
            client.sendall(b"x")
            assert server.recv(10) == b"x"
            client.close()
            server.close()


@pytest.mark.parametrize("protocol", [TunnelProtocol.HBONE, TunnelProtocol.NONE])
def test_urgent_bytes_arrive_in_their_place(mesh: World, app: socket.socket, protocol: TunnelProtocol) -> None:
    """Nothing tells the other end that they are urgent, but none is missing."""
    mesh.client.worker.tell(UpdateInventory([replace(mesh.server.workload, protocol=protocol)], []))
    client, server = connected(mesh, app, mesh.server.address, 8080)
    for one, other in ((client, server), (server, client)):
        one.sendall(b"stop")
        one.send(b"!", socket.MSG_OOB)
        one.sendall(b"now")
        said = b""
        while len(said) < 8:
            said += other.recv(8)
        assert said == b"stop!now"
    client.close()
    server.close()
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], []))


def test_half_close_either_way(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app)
    client.sendall(b"all I have to say")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"all I have to say"
    server.sendall(b"answered after your end")
    server.close()
    assert read_all(client) == b"answered after your end"
    client, server = connected(mesh, app)
    server.sendall(b"server first")
    server.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"server first"
    client.sendall(b"and the client later")
    client.close()
    assert read_all(server) == b"and the client later"
    server.close()


def test_bytes_sent_before_anybody_accepts_are_not_lost(mesh: World, app: socket.socket) -> None:
    client = mesh.client.connect(VIP, 80)
    client.sendall(b"early bird")
    client.close()
    assert read_all(accept(app)) == b"early bird"


def test_a_reset_of_the_client_reaches_the_server(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app)
    client.sendall(b"x")
    server.recv(1)
    reset(client)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert mesh.server.worker.closed().error == ""


def test_a_reset_of_the_server_reaches_the_client(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app)
    client.sendall(b"x")
    server.recv(1)
    reset(server)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def pump_slowly(source: socket.socket, sink: socket.socket, size: int, watch: Callable[[], None]) -> None:
    """Send random bytes to a reader that stops now and then; compare checksums."""
    sent = hashlib.sha256()

    def write() -> None:
        left = size
        while left:
            block = os.urandom(min(left, MiB))
            sent.update(block)
            source.sendall(block)
            left -= len(block)
        source.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    received = hashlib.sha256()
    count = 0
    while part := sink.recv(MiB):
        received.update(part)
        if count // (4 * MiB) != (count + len(part)) // (4 * MiB):
            watch()
            time.sleep(0.02)  # the slow reader: this pause is what is tested, not a wait
        count += len(part)
    writer.join()
    assert count == size and received.digest() == sent.digest()


@pytest.mark.parametrize("upload", [True, False])
def test_64_mib_through_a_slow_reader_in_bounded_memory(mesh: World, app: socket.socket, upload: bool) -> None:
    client, server = connected(mesh, app)
    workers = (mesh.client.worker, mesh.server.worker)
    before = [worker.memory_kib() for worker in workers]
    peaks = [0, 0]

    def watch() -> None:
        for place, worker in enumerate(workers):
            peaks[place] = max(peaks[place], worker.memory_kib())

    pump_slowly(*((client, server) if upload else (server, client)), 64 * MiB, watch)
    client.close()
    server.close()
    assert all(peak - start < 24 << 10 for peak, start in zip(peaks, before, strict=True)), (before, peaks)
    record = mesh.client.worker.closed()
    assert (record.bytes_sent if upload else record.bytes_received) == 64 * MiB


def test_proxies_whose_windows_and_frames_differ_understand_each_other() -> None:
    with world("sizes") as mesh:
        mesh.client.configuration = {"tuning": Tuning(sizes=Sizes(65535, 65535, 16384))}
        mesh.server.configuration = {"tuning": Tuning(sizes=Sizes(1 << 30, (1 << 31) - 1, LARGEST_FRAME_BYTES))}
        mesh.start()
        with mesh.server.listen(8080) as app:
            for upload in (True, False):
                client, server = connected(mesh, app)
                pump_slowly(*((client, server) if upload else (server, client)), 16 * MiB, lambda: None)


def have_told(worker: WorkerProcess, kind: type) -> bool:
    """Whether it has said such a thing by now."""
    worker.catch_up()
    return any(isinstance(message, kind) for message in worker.heard)


def watch(mesh: World, app: socket.socket, kind: ProfileKind) -> dict[str, Profile]:
    """What both workers do, who are busy for as long as they are watched."""
    for pod in mesh.pods.values():
        pod.worker.tell(TakeProfile(7, kind, 1, 1000))
    while not all(have_told(pod.worker, Profile) for pod in mesh.pods.values()):
        pump_slowly(*connected(mesh, app), 8 * MiB, lambda: None)
    return {name: pod.worker.wait_for(Profile) for name, pod in mesh.pods.items()}


@pytest.mark.parametrize("kind", ["cpu", "heap"])
def test_a_worker_that_is_watched_carries_on_and_tells_what_it_did(mesh: World, app: socket.socket, kind: ProfileKind) -> None:
    seen: dict[str, list[Stack]] = {name: [] for name in mesh.pods}
    while min(sum(count for _, count, _ in stacks) for stacks in seen.values()) < 10:  # a busy machine lets them do little
        for name, profile in watch(mesh, app, kind).items():
            assert profile.number == 7
            seen[name] += profile.stacks
    movers = {"stream.py", "tunnel.py", "outflow.py", "inflow.py", "intake.py"}
    for stacks in seen.values():
        files = [({file.rpartition("/")[2] for _, file, _, _ in stack}, count) for stack, count, _ in stacks]
        assert {"loop.py", "worker.py"} <= {file for those, _ in files for file in those}
        if kind == "cpu":  # a good part of what it did was to move the bytes
            assert sum(count for those, count in files if movers & those) * 4 > sum(count for _, count in files)


def test_a_stopped_reader_does_not_stop_its_neighbours(mesh: World, app: socket.socket) -> None:
    stuck, reader = connected(mesh, app)
    stuck.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            stuck.send(bytes(MiB))
    for _ in range(50):
        client, server = connected(mesh, app)
        client.sendall(b"ping")
        assert server.recv(4) == b"ping"
        client.close()
        server.close()
    reset(stuck)
    reset(reader)


@pytest.mark.parametrize("tunnelled", [True, False])
def test_a_reset_is_noticed_while_the_other_side_is_stuck(mesh: World, tunnelled: bool) -> None:
    workload = mesh.server.workload if tunnelled else replace(mesh.server.workload, protocol=TunnelProtocol.NONE)
    mesh.client.worker.tell(UpdateInventory([workload], []))
    with mesh.server.listen(8080) as listener:
        stuck, reader = connected(mesh, listener, mesh.server.address, 8080)
        stuck.settimeout(0.5)
        with pytest.raises((BlockingIOError, TimeoutError)):
            while True:
                stuck.send(bytes(MiB))
        reset(stuck)
        mesh.client.worker.closed()
        with pytest.raises(ConnectionResetError):
            while reader.recv(MiB):
                pass
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], []))


def test_500_connections_at_once(mesh: World, app: socket.socket) -> None:
    app.listen(1024)
    clients = [mesh.client.connect(VIP, 80) for _ in range(500)]
    servers = [accept(app) for _ in clients]
    for number, client in enumerate(clients):
        client.sendall(number.to_bytes(4, "big"))
    seen = set()
    for server in servers:
        number = server.recv(4)
        seen.add(number)
        server.sendall(number + b"!")
    for number, client in enumerate(clients):
        assert client.recv(5) == number.to_bytes(4, "big") + b"!"
    assert len(seen) == 500
    assert len(mesh.client.worker.catch_up()) >= 500
    mesh.client.worker.heard.clear()
    status = mesh.client.worker.wait_for(WorkerStatus)
    assert status.gauges["connections"] >= 500
    assert 5 <= status.gauges["tunnels"] <= 8  # at most 100 streams each; some are held by connections that are just ending
    for sock in (*clients, *servers):
        sock.close()
    for _ in clients:
        assert mesh.server.worker.closed().error == ""


def test_server_shutdown_resets_the_client_and_says_why(mesh: World) -> None:
    assert_reset(lambda: mesh.client.connect(mesh.server.address, 9999))
    mine, theirs = mesh.client.worker.closed(), mesh.server.worker.closed()
    assert (mine.flag, mine.error) == ("CONNECT", "http status: 503 Service Unavailable")
    assert (theirs.flag, theirs.error) == ("CONNECT", "connection failed: Connection refused (os error 111)")


def test_a_service_without_endpoints_resets_the_client(mesh: World) -> None:
    assert_reset(lambda: mesh.client.connect(VIP, 81))
    assert mesh.client.worker.closed().error.startswith(
        f"no healthy upstream: {VIP}:81: service {mesh.service.key} has no port 81"
    )


def test_an_endpoint_with_only_a_hostname_is_dialled_where_that_leads(mesh: World, app: socket.socket) -> None:
    """An address is a name too, for which nobody need be asked; one that no message can hold leads nowhere."""
    for hostname in (mesh.server.address, "x" * 64 + ".example"):
        mesh.client.worker.tell(UpdateInventory([replace(mesh.server.workload, addresses=(), hostname=hostname)], []))
        if hostname == mesh.server.address:
            client, server = connected(mesh, app)
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            client.close()
            server.close()
            assert mesh.client.worker.closed().hbone_destination == f"{mesh.server.address}:8080"
        else:
            assert_reset(lambda: mesh.client.connect(VIP, 80))
            assert mesh.client.worker.closed().error.startswith(f"no address found for {hostname}")
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], []))


def test_an_entrys_endpoint_that_is_a_pod_is_reached_by_mutual_tls(mesh: World, app: socket.socket) -> None:
    """Whether it is written down by its address or by a name that leads there."""
    uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/db/x"
    listed = Workload(uid, "db", "shop", services={mesh.service.key: {80: 8080}})
    for one in (replace(listed, hostname=mesh.server.address), replace(listed, addresses=mesh.server.workload.addresses)):
        mesh.client.worker.tell(UpdateInventory([replace(mesh.server.workload, services={}), one], []))
        client, server = connected(mesh, app)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        client.close()
        server.close()
        record = mesh.client.worker.closed()
        assert (record.protocol, record.destination_identity) == ("HBONE", SERVER)
        assert record.destination_workload == mesh.server.workload.uid
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], [uid]))


def test_a_connection_that_no_redirect_sent_is_refused(mesh: World) -> None:
    assert_reset(lambda: mesh.client.connect("127.0.0.1", 15006, mark=0x539))
    assert "self call" in mesh.client.worker.early("self call").error


def test_an_unenrolled_destination_passes_through(mesh: World) -> None:
    """Port 15008 of the server's pod is no service here: the address is taken out of the mesh for this test."""
    plain = replace(mesh.server.workload, protocol=TunnelProtocol.NONE)
    mesh.client.worker.tell(UpdateInventory([plain], []))
    with mesh.server.listen(8080) as listener:
        client, server = connected(mesh, listener, mesh.server.address, 8080)
        client.sendall(b"plain")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == b"plain"
        server.sendall(b"text")
        server.close()
        assert read_all(client) == b"text"
    mine, theirs = mesh.client.worker.closed(), mesh.server.worker.closed()
    assert mine.protocol == theirs.protocol == "TCP" and theirs.source_identity is None
    assert (mine.bytes_sent, mine.bytes_received) == (5, 4) == (theirs.bytes_received, theirs.bytes_sent)
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], []))


def test_plain_bulk_and_resets(mesh: World) -> None:
    plain = replace(mesh.server.workload, protocol=TunnelProtocol.NONE)
    mesh.client.worker.tell(UpdateInventory([plain], []))
    with mesh.server.listen(8080) as listener:
        client, server = connected(mesh, listener, mesh.server.address, 8080)
        pump_slowly(client, server, 16 * MiB, lambda: None)
        reset(server)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], []))


def test_a_connection_waits_for_its_certificate_and_fails_without(mesh: World, app: socket.socket) -> None:
    mesh.client.worker.tell(ForgetCertificate(CLIENT))
    waiting = mesh.client.connect(VIP, 80)
    assert mesh.client.worker.wait_for(NeedCertificate).identity == CLIENT
    mesh.client.worker.tell(CertificateFailed(CLIENT, "the CA is away"))
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    record = mesh.client.worker.closed()
    assert (record.flag, record.error) == ("IDENTITY_ERROR", f"no certificate for {CLIENT}: the CA is away")
    waiting = mesh.client.connect(VIP, 80)
    mesh.client.worker.wait_for(NeedCertificate)
    mesh.client.worker.tell(mesh.authority.certificate_for(CLIENT))
    waiting.sendall(b"x")
    server = accept(app)
    assert server.recv(1) == b"x"
    server.close()
    waiting.close()


def test_a_pod_waits_for_its_workload(mesh: World, app: socket.socket) -> None:
    mesh.client.worker.tell(UpdateInventory([], [mesh.client.workload.uid]))
    waiting = mesh.client.connect(VIP, 80)
    waiting.sendall(b"patience")
    mesh.client.worker.wait_for(WorkerStatus, lambda said: said.gauges["waiting_for_workload"] == 1)
    mesh.client.worker.tell(UpdateInventory([mesh.client.workload], []))
    assert accept(app).recv(100) == b"patience"
    waiting.close()


def test_a_removed_pod_says_goaway_and_takes_its_connections_along(mesh: World, app: socket.socket) -> None:
    client, server = connected(mesh, app)
    client.sendall(b"x")
    server.recv(1)
    mesh.server.worker.tell(RemovePod("server"))
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert "drain" in mesh.server.worker.closed().error
    assert "connection closed by the peer" in mesh.client.worker.closed(lambda record: record.error != "").error
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        mesh.client.connect(VIP, 80).recv(1)
    mesh.server.add_pod()
    client, server = connected(mesh, app)
    client.sendall(b"again")
    assert server.recv(5) == b"again"
    client.close()
    server.close()


@pytest.mark.parametrize("gone", ["client", "server"])
def test_a_removed_pods_many_connections_all_end(mesh: World, app: socket.socket, gone: str) -> None:
    ends = [end for _ in range(5 * ENDINGS_PER_TURN) for end in connected(mesh, app)]
    mesh.pods[gone].worker.tell(RemovePod(gone))
    for end in ends:
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    for _ in ends[::2]:
        assert "drain" in mesh.pods[gone].worker.closed().error
    mesh.pods[gone].add_pod()


def test_ztunnel_shutdown_lets_what_is_open_finish() -> None:
    with world("shutdown") as mesh:
        mesh.start()
        with mesh.server.listen(8080) as listener:
            client, server = connected(mesh, listener)
            client.sendall(b"x")
            server.recv(1)
            mesh.server.worker.tell(Shutdown(60))
            mesh.server.worker.catch_up()  # it drains
            server.sendall(b"still here")
            assert client.recv(100) == b"still here"
            with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
                mesh.client.connect(mesh.server.address, 8080).recv(1)
            client.close()
            server.close()
        assert mesh.server.worker.wait_for(Closed).record.error == ""
        assert mesh.server.worker.process.wait(40) == 0


def test_shutdown_ends_at_its_deadline_and_without_a_supervisor() -> None:
    with world("deadline") as mesh:
        mesh.start()
        with mesh.server.listen(8080) as listener:
            client, server = connected(mesh, listener)
            client.sendall(b"x")
            server.recv(1)
            mesh.server.worker.tell(Shutdown(0.2))
            assert mesh.server.worker.process.wait(40) == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        mesh.client.worker.sock.close()
        assert mesh.client.worker.process.wait(40) == 0


def test_an_idle_worker_is_small_and_starts_fast(mesh: World) -> None:
    with world("idle") as fresh:
        fresh.start()
        assert cpu_s([fresh.client.worker.process.pid]) < 5
        assert fresh.client.worker.memory_kib() <= 30 << 10


def limit_for(worker: int, more: int) -> int:
    """The limit by which a process can open so many more, whatever numbers it has in use."""
    taken = {int(number) for number in os.listdir(f"/proc/{worker}/fd")}
    return next(islice((number for number in count() if number not in taken), more, None))


def test_running_out_of_descriptors_delays_but_does_not_break(mesh: World, app: socket.socket) -> None:
    worker = mesh.client.worker.process.pid
    first = connected(mesh, app)  # whose tunnel the others share
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit_for(worker, 3), before[1]))
    clients = [mesh.client.connect(VIP, 80) for _ in range(6)]
    for client in clients:
        client.sendall(b"x")
    for _ in range(3):
        accept(app)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
    for _ in range(3):
        assert accept(app).recv(1) == b"x"
    for sock in (*clients, *first):
        sock.close()


def test_a_pod_for_which_no_descriptors_are_left_costs_nobody_a_connection(mesh: World, app: socket.socket) -> None:
    client = mesh.client.connect(VIP, 80)
    client.sendall(b"x")
    served = accept(app)
    worker = mesh.client.worker
    before = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
    in_use = len(os.listdir(f"/proc/{worker.process.pid}/fd"))
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (limit_for(worker.process.pid, 2), before[1]))
    worker.tell(AddPod("late", "shop", "late", "late"), [0] * 9)  # more than it may give back meanwhile
    assert "raise the limit (RLIMIT_NOFILE)" in worker.wait_for(PodAdded).error
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, before)
    served.sendall(b"goes on")
    assert client.recv(7) == b"goes on"
    assert len(os.listdir(f"/proc/{worker.process.pid}/fd")) <= in_use
    client.close()
