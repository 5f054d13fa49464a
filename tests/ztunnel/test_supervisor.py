"""The whole proxy as a process: real workers, a scripted agent, a control plane and CA over TLS, pods as real namespaces."""

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.proto import certificate_pb2, certificate_pb2_grpc
from mesh.proto.profile_pb2 import Profile
from mesh.proto.zds_pb2 import AddWorkload, DelWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest, WorkloadResponse
from mesh.resources import ADDRESS_TYPE, encode_service, encode_workload
from mesh.workload import Service, TunnelProtocol, Workload
from tests.frozen import frozen
from wire import http_client, keyring
from wire.fds import PacketStream
from wire.http_client import open_stream, read_lines
from wire.netns import entered, open_home

pytestmark = pytest.mark.kernel
request = partial(http_client.request, timeout_s=40)

PROGRAM = ("-m", "ztunnel")
PATIENT = (
    "-c",
    """
import runpy
from ztunnel import workers
workers._ANSWER_TIMEOUT_S = 60.0
runpy.run_module("ztunnel", run_name="__main__", alter_sys=True)
""",
)
"""A proxy that waits for its workers' answers as long as a busy machine needs."""
WEB = Workload(
    "Kubernetes//Pod/demo/web", "web", "demo", (ip_address("127.0.0.1"),), protocol=TunnelProtocol.HBONE, node="n1",
    service_account="web", workload_name="web", canonical_name="web",
)  # fmt: skip
SERVICE = Service("web", "demo", "web.demo.svc.cluster.local", ports={80: 8080})


class Control(certificate_pb2_grpc.IstioCertificateServiceServicer):
    """A control plane with one workload, one service, and a CA for everybody."""

    def __init__(self, authority: Any) -> None:
        self.authority = authority

    async def start(self) -> int:
        self.server = grpc.aio.server()
        certificate_pb2_grpc.add_IstioCertificateServiceServicer_to_server(self, self.server)
        ads = grpc.stream_stream_rpc_method_handler(
            self.stream, DeltaDiscoveryRequest.FromString, DeltaDiscoveryResponse.SerializeToString
        )
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": ads}),)
        )
        credentials = grpc.ssl_server_credentials([self.authority.server("127.0.0.1")])
        port = self.server.add_secure_port("127.0.0.1:0", credentials)
        await self.server.start()
        return port

    async def stream(self, requests: AsyncIterator[DeltaDiscoveryRequest], _: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
        async for one in requests:
            if one.response_nonce:
                continue
            found = []
            if one.type_url == ADDRESS_TYPE:
                for name, value in ((WEB.uid, encode_workload(WEB)), (SERVICE.key, encode_service(SERVICE))):
                    found.append(Resource(name=name, version="1", resource=AnyMessage(type_url=ADDRESS_TYPE, value=value)))
            yield DeltaDiscoveryResponse(type_url=one.type_url, nonce="n", resources=found)

    async def CreateCertificate(self, message: Any, _: Any) -> certificate_pb2.IstioCertificateResponse:
        key = x509.load_pem_x509_csr(message.csr.encode()).public_key()
        leaf = self.authority.workload(key, message.metadata["ImpersonatedIdentity"]).decode()
        return certificate_pb2.IstioCertificateResponse(cert_chain=[leaf, self.authority.root_pem.decode()])


class Node:
    """One proxy process with its agent; paths and names carry this test process's number."""

    def __init__(self, folder: Path, netns: str) -> None:
        self.netns = netns
        self.run = folder / "run" / "nodes" / "n1"
        self.run.mkdir(parents=True)
        (self.run / "token").write_text("token")
        self.environment = {
            **os.environ, "WEFT_RUN_DIR": str(folder / "run"), "WEFT_STATE_DIR": str(folder / "state"),
            "WEFT_PREFIX": f"weft-test-{os.getpid()}",
            "ADMIN_PORT": "0", "STATS_PORT": "0", "READINESS_PORT": "0", "CONNECTION_TERMINATION_DEADLINE": "2s",
        }  # fmt: skip
        self.program: Sequence[str] = PATIENT
        self.admin = self.run / "admin.sock"
        self.log = folder / "log"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.run / "ztunnel.sock"))
        self.listener.listen()
        self.listener.setblocking(False)

    def spawn(self, control_port: int) -> None:
        arguments = ("--node", "n1", "--workers", "2", "--control", f"127.0.0.1:{control_port}")
        command = [sys.executable, *self.program, *arguments]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    async def begin(self, control_port: int) -> None:
        self.spawn(control_port)
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.agent = PacketStream(accepted)
        assert (await self.agent.receive()).data == b"\x08\x01"

    async def start(self, control_port: int) -> None:
        await self.begin(control_port)
        async with asyncio.timeout(40):  # the agent is the first to hear of a proxy
            while not await self.answers():  # noqa: ASYNC110  the event is in another process
                await asyncio.sleep(0.01)

    async def works(self) -> None:
        """Both its workers have begun. One that is stopped between fork and exec would stop the proxy, which waits for it."""
        async with asyncio.timeout(40):
            while b"weft_workers 2" not in (await request(self.admin, "GET", "/metrics")).check():
                pass

    async def answers(self) -> bool:
        try:
            await request(self.admin, "GET", "/healthz/ready")
        except OSError:
            return False
        return True

    async def tell(self, message: WorkloadRequest, netns: Path | None = None) -> str:
        fds = [os.open(netns, os.O_RDONLY)] if netns else []
        await self.agent.send(message.SerializeToString(), fds)
        for fd in fds:
            os.close(fd)
        return str(WorkloadResponse.FromString((await self.agent.receive()).data).ack.error)

    async def add_pod(self) -> str:
        info = WorkloadInfo(name="web", namespace="demo", service_account="web")
        return await self.tell(WorkloadRequest(add=AddWorkload(uid="u1", workload_info=info)), Path("/run/netns", self.netns))

    async def get(self, path: str) -> Any:
        reply = await request(self.admin, "GET", path)
        return json.loads(reply.check())

    async def ready(self) -> None:
        async with asyncio.timeout(40):
            while (await request(self.admin, "GET", "/healthz/ready")).status != 200:
                pass

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def dial(self, port: int) -> socket.socket:
        netns_fd, home_fd = os.open(f"/run/netns/{self.netns}", os.O_RDONLY), open_home()
        with entered(netns_fd, home_fd):
            client = socket.socket(socket.AF_INET)
        os.close(netns_fd)
        os.close(home_fd)
        client.settimeout(40)
        client.connect(("127.0.0.1", port))
        return client

    async def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 40)


@pytest.fixture
def play(tmp_path: Path, authority: Any) -> Callable[..., None]:
    async def run(scenario: Callable[[Node, Any], Awaitable[None]], make: type[Control], netns: str) -> None:
        node, control = Node(tmp_path, netns), make(authority)
        (node.run / "root-cert.pem").write_bytes(authority.root_pem)
        try:
            async with asyncio.timeout(250):
                await scenario(node, control)
        finally:
            await control.server.stop(None)
            node.process.kill()
            node.process.wait()
            node.agent.close()
            node.listener.close()
            keyring.forget_all(keyring.scope(node.environment["WEFT_PREFIX"]))

    def start(scenario: Callable[[Node, Any], Awaitable[None]], make: type[Control] = Control) -> None:
        netns = f"weft-test-{os.getpid()}-pod"
        subprocess.run(["ip", "netns", "add", netns], check=True)
        try:
            subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
            asyncio.run(run(scenario, make, netns))
        finally:
            subprocess.run(["ip", "netns", "del", netns], check=True)

    return start


def test_a_node_comes_up_outlives_its_workers_and_its_control_plane(play: Any, eventually: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        await node.start(await control.start())
        assert await node.add_pod() == ""
        assert await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()
        dump: dict[str, Any] = {}

        async def certified() -> bool:
            dump.update(await node.get("/config_dump"))
            return any(one["state"] == "Available" for one in dump["certificates"])

        async with asyncio.timeout(40):
            while not await certified():
                pass
        assert [one["identity"] for one in dump["certificates"]] == ["spiffe://cluster.local/ns/demo/sa/web"]
        assert [one["uid"] for one in dump["workloads"]] == [WEB.uid] and dump["workloadState"]["u1"]["state"] == "Up"
        assert [one["hostname"] for one in dump["services"]] == [SERVICE.hostname]
        has_istios_keys(dump)

        # All workers die: the listeners stay, and whoever dials now is served by their successors.
        await node.works()
        before = node.workers()
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        client = node.dial(15008)
        client.sendall(b"this is no TLS")
        assert await asyncio.to_thread(until_closed, client) is not None
        await eventually(lambda: len(set(node.workers()) - set(before)) == 2)
        metrics = (await request(node.admin, "GET", "/metrics")).body.decode()
        assert "weft_worker_restarts_total 2" in metrics and "workload_manager_active_proxy_count 1" in metrics

        # A restart while nobody controls, orderly or not: what was known still is, and so is its certificate.
        await control.server.stop(None)
        for number in (signal.SIGTERM, signal.SIGKILL):
            await node.end(number)
            node.agent.close()
            await node.start(control_port=1)
            assert await node.add_pod() == "" and await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
            await node.ready()
            successor = await node.get("/config_dump")
            assert [one["uid"] for one in successor["workloads"]] == [WEB.uid]
            assert successor["certificates"] == dump["certificates"]
        folder = node.run.parents[2]
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files and not any(b"PRIVATE KEY" in path.read_bytes() for path in files), "keys are never on disk"

        # Sealed with another token: of no use.
        await node.end()
        node.agent.close()
        (node.run / "token").write_text("another token")
        await node.start(control_port=1)
        assert await node.add_pod() == ""
        dump = await node.get("/config_dump")
        assert dump["certificates"][0]["state"] != "Available"
        assert (dump["controlPlane"]["connected"], dump["controlPlane"]["address"]) == (False, "127.0.0.1:1")
        assert keyring.names(keyring.scope(node.environment["WEFT_PREFIX"])) == []

    play(scenario)


def test_what_a_silent_worker_carries_is_said_to_be_missing(play: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        node.program = PROGRAM
        await node.start(await control.start())
        await node.works()
        with frozen(node.workers()[:1]):
            for _ in range(10):  # on a busy machine the other one may answer too late
                asked = (request(node.admin, "GET", path) for path in ("/connections", "/config_dump"))
                connections, dump = await asyncio.gather(*asked)
                silent = connections.headers["silent-workers"], json.loads(dump.check())["silentWorkers"]
                assert silent[0] in ("1", "2") and connections.check() == b"[]\n"
                if silent == ("1", 1):
                    break
            assert silent == ("1", 1)

    play(scenario)


def has_istios_keys(dump: dict[str, Any]) -> None:
    """All keys that istioctl may read, at each place outside of workloads, services and policies (tests/mesh/test_dump.py).

    And two of weft's own, which `weft status` reads.
    """
    assert dump.keys() - {"silentWorkers"} == {
        "workloads", "services", "policies", "stagedServices", "staticConfig", "version", "config", "certificates",
        "workloadState", "controlPlane",
    }  # fmt: skip
    assert (dump["controlPlane"]["connected"], dump["controlPlane"]["error"]) == (True, "")
    assert dump["staticConfig"].keys() == {"workloads", "policies", "services"}
    assert dump["version"].keys() == {
        "version", "gitRevision", "rustVersion", "buildProfile", "buildStatus", "istioVersion", "cryptoProvider",
    }  # fmt: skip
    certificate, pod = dump["certificates"][0], dump["workloadState"]["u1"]
    assert certificate.keys() == {"identity", "state", "certChain", "rootCerts"}
    for one in (*certificate["certChain"], *certificate["rootCerts"]):
        assert one.keys() == {"pem", "serialNumber", "validFrom", "expirationTime"}
    assert pod.keys() == {"state", "connections", "info"} and pod["connections"] == {"inbound": [], "outbound": []}
    assert pod["info"].keys() == {"name", "namespace", "serviceAccount"}
    assert not any("_" in key for key in dump["config"])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_closed(client: socket.socket) -> bytes:
    received = b""
    with client:
        try:
            while piece := client.recv(4096):
                received += piece
        except ConnectionResetError:
            pass
    return received


def test_who_connects_before_a_proxy_can_serve_waits_for_it(play: Any) -> None:
    """The agent is answered while the workers' processes still start."""

    async def scenario(node: Node, control: Control) -> None:
        await node.begin(await control.start())
        assert await node.add_pod() == ""
        assert await asyncio.to_thread(until_closed, node.dial(15006)) == b""
        assert await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()

    play(scenario)


def test_a_refused_connection_shows_in_log_metrics_and_flows(play: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        await node.start(await control.start())
        assert await node.add_pod() == ""
        async with open_stream(node.admin, "GET", "/flows") as (status, _, pieces):
            assert status == 200
            client = node.dial(15008)
            client.sendall(b"this is no TLS")
            await asyncio.to_thread(until_closed, client)
            async with asyncio.timeout(40):
                event = json.loads(await anext(read_lines(pieces)))
        assert event["phase"] in ("unauthenticated", "failed") and event["direction"] == "inbound"
        assert event["destination"]["pod"] == "web" and event["node"] == "n1"
        metrics = (await request(node.admin, "GET", "/metrics")).body.decode()
        assert 'weft_early_failures_total{direction="inbound",flag="TLS_FAILURE"} 1' in metrics
        assert await node.end() == 0
        assert "\twarn\taccess\tconnection failed\tsrc.addr=127.0.0.1:" in node.log.read_text()

    play(scenario)


def test_a_pod_whose_dns_port_is_taken_is_served_and_told_of_and_names_are_logged_when_asked(
    play: Any, eventually: Any
) -> None:
    question = b"\0\1\1\0\0\1" + b"\0" * 6 + b"\3web\4demo\0\0\1\0\1"

    async def scenario(node: Node, control: Control) -> None:
        await node.start(await control.start())
        netns_fd, home_fd = os.open(f"/run/netns/{node.netns}", os.O_RDONLY), open_home()
        with entered(netns_fd, home_fd):
            taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind(("127.0.0.1", 15053))
        assert await node.add_pod() == ""
        assert "weft_pods_without_dns 1\n" in (await request(node.admin, "GET", "/metrics")).body.decode()
        assert "pod demo/web is served without DNS on 127.0.0.1:15053: Address already in use: free" in node.log.read_text()
        taken.close()
        assert await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()
        assert await node.tell(WorkloadRequest(**{"del": DelWorkload(uid="u1")})) == "" and await node.add_pod() == ""
        assert "weft_pods_without_dns 0\n" in (await request(node.admin, "GET", "/metrics")).body.decode()
        assert (await request(node.admin, "POST", "/logging?level=dns=debug")).status == 200
        with node.dial(15053) as client:
            client.sendall(len(question).to_bytes(2, "big") + question)
            answer = await asyncio.to_thread(client.recv, 512)
        assert answer[2:6] == question[:2] + b"\x85\x80", "with authority, although there is no address"
        line = 'src.workload="web" src.namespace="demo" query=A domain="web.demo" result="no records" endpoints=0'
        await eventually(lambda: line in node.log.read_text())
        for fd in (netns_fd, home_fd):
            os.close(fd)
        assert await node.end() == 0

    play(scenario)


def test_a_broken_namespace_and_one_without_ipv6_keep_the_node_from_nothing(play: Any, tmp_path: Path) -> None:
    async def scenario(node: Node, control: Control) -> None:
        await node.start(await control.start())
        broken = AddWorkload(uid="u0", workload_info=WorkloadInfo(name="db", namespace="demo", service_account="db"))
        (tmp_path / "file").touch()
        error = await node.tell(WorkloadRequest(add=broken), tmp_path / "file")
        assert error.startswith("failure to start proxy : ") and "cannot enter the network namespace: Invalid argument" in error
        command = ["ip", "netns", "exec", node.netns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]
        await asyncio.to_thread(subprocess.run, command, check=True)
        assert await node.add_pod() == ""
        assert await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()
        states = (await node.get("/config_dump"))["workloadState"]
        assert {uid: state["state"] for uid, state in states.items()} == {"u0": "Pending", "u1": "Up"}
        metrics = (await request(node.admin, "GET", "/metrics")).body.decode()
        assert "workload_manager_pending_proxy_count 1" in metrics and "workload_manager_active_proxy_count 1" in metrics
        node.dial(15008).close()
        assert node.process.poll() is None

    play(scenario)


def test_levels_quit_and_what_ends_the_process(play: Any, eventually: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        port = await control.start()
        await node.start(port)
        said = b"current log level is info,access=debug\n"
        assert (await request(node.admin, "POST", "/logging?level=access=debug")).body == said
        assert (await request(node.admin, "POST", "/logging?level=loud")).status == 400
        assert (await request(node.admin, "POST", "/logging")).body == said, "istioctl asks like this"
        assert (await request(node.admin, "GET", "/logging?level=off")).status == 405, "a page's image must not change anything"
        assert (await request(node.admin, "GET", "/logging?reset")).status == 405
        assert (await request(node.admin, "GET", "/logging")).body == said
        assert (await request(node.admin, "POST", "/logging?reset&level=warn")).body == b"current log level is warn\n"
        reply = await request(node.admin, "GET", "/healthz/ready")
        assert reply.status == 500 and b"not ready, pending: " in reply.body
        assert b"workload proxy manager (the agent's list of pods)" in reply.body
        assert (await request(node.admin, "POST", "/quitquitquit")).status == 200
        assert await asyncio.to_thread(node.process.wait, 40) == 0
        node.agent.close()

        await node.start(port)
        error = await node.tell(WorkloadRequest(add=AddWorkload(uid="q")), Path("/run/netns", node.netns))
        assert "workload_info is required but not present" in error
        assert await asyncio.to_thread(node.process.wait, 40) == 1
        node.agent.close()

        # Workers that are frozen do not drain: a second signal does not wait for them.
        node.environment["CONNECTION_TERMINATION_DEADLINE"] = "30s"
        await node.start(port)
        await node.works()
        workers = node.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        assert (await request(node.admin, "POST", "/quitquitquit")).status == 200
        await eventually(lambda: node.log.read_text().count("draining for at most 30 s") == 1)
        node.process.terminate()
        assert (await request(node.admin, "GET", "/healthz/ready")).body.startswith(b"not ready, pending: proxy (its successor")
        assert await node.end() == 128 + signal.SIGTERM
        await eventually(lambda: not any(map(_runs, workers)))
        node.agent.close()

        # A terminal that is closed tells all of them.
        await node.start(port)
        await node.works()
        for pid in node.workers():
            os.kill(pid, signal.SIGHUP)
        assert await node.end(signal.SIGHUP) == 0
        assert node.log.read_text().count("draining for at most 30 s") == 2
        node.agent.close()

        await node.start(port)
        await node.works()
        workers = node.workers()
        os.kill(workers[0], signal.SIGSTOP)
        node.process.kill()
        node.process.wait()
        await eventually(lambda: not any(map(_runs, workers)))

    play(scenario)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_who_is_told_to_end_while_it_starts_ends_in_order_and_says_so(play: Any, eventually: Any, number: int) -> None:
    """While it listens already and imports the rest; and before its loop runs."""

    async def scenario(node: Node, control: Control) -> None:
        node.program, port = PROGRAM, await control.start()
        await node.begin(port)
        assert await node.end(number) == 0
        assert said_its_end(node)

        node.log.unlink()
        node.spawn(port)
        await eventually(lambda: "_asyncio." in Path(f"/proc/{node.process.pid}/maps").read_text())
        assert await node.end(number) == 0
        assert said_its_end(node)

    play(scenario)


def said_its_end(node: Node) -> bool:
    """Whether its log says why it ended."""
    return any(words in node.log.read_text() for words in ("while it starts: ending", "draining for at most"))


def test_every_line_is_json_when_that_is_wanted_and_workers_follow_the_levels(play: Any, eventually: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        node.environment |= {"LOG_FORMAT": "json", "AUTHZ_POLICY_INFO_LOGGING": "true"}
        await node.start(await control.start())
        assert await node.add_pod() == ""
        assert (await request(node.admin, "POST", "/logging?level=dns=debug")).status == 200
        pid = node.workers()[0]
        question = b"\0\1\1\0\0\1" + b"\0" * 6 + b"\3web\4demo\0\0\1\0\1"

        def lines() -> list[dict[str, str]]:
            *whole, _ = node.log.read_text().split("\n")  # a line may be half written
            return [json.loads(line) for line in whole]

        while not any(one["scope"] == "dns" for one in lines()):
            with node.dial(15053) as client:
                client.sendall(len(question).to_bytes(2, "big") + question)
                await asyncio.to_thread(client.recv, 512)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: any("was killed by SIGKILL" in one["message"] for one in lines()))
        with node.dial(15008) as client:
            client.sendall(b"this is no TLS")
            await asyncio.to_thread(until_closed, client)
        assert await node.end() == 0
        assert {"level", "time", "scope", "message"} <= set.intersection(*(set(one) for one in lines()))
        assert {"access", "dns", "pods", "supervisor", "workers"} <= {one["scope"] for one in lines()}

    play(scenario)


async def profile_of(node: Node, name: str) -> Profile:
    """Of a second in which both, supervisor and workers, have something to do."""
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(request(node.admin, "GET", f"/debug/pprof/{name}"))
        clients: list[socket.socket] = []
        while not asking.done():
            await request(node.admin, "GET", "/metrics")
            for one in (node.dial(15008) for _ in range(10)):
                if len(clients) < 100:
                    clients.append(one)
                else:
                    one.close()
    for client in clients:
        client.close()
    return Profile.FromString(gzip.decompress((await asking).check()))


def test_profiles_of_the_supervisor_and_its_workers(play: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        await node.start(await control.start())
        assert await node.add_pod() == ""
        for query in (
            "seconds=0",
            "seconds=301",
            "seconds=000000001999",
            "seconds=x",
            "seconds=1&frequency=1001",
            "frequency=-1",
        ):
            refused = await request(node.admin, "GET", f"/debug/pprof/profile?{query}")
            assert refused.status == 400 and b"expected 1-" in refused.body
        for name, cost in (("profile?seconds=1&frequency=250", "cpu"), ("heap?seconds=1", "inuse_space")):
            seen, functions = set[str](), set[str]()
            for _ in range(5):  # again where a busy machine let one of them do nothing in that second
                profile = await profile_of(node, name)
                texts = profile.string_table
                assert texts[profile.default_sample_type] == cost
                seen |= {texts[one.label[0].str] for one in profile.sample}
                functions |= {texts[one.name] for one in profile.function}
                if seen & {"worker 0", "worker 1"} and (cost != "cpu" or "supervisor" in seen) and "Loop._turn" in functions:
                    break
            assert seen & {"worker 0", "worker 1"}
            assert cost != "cpu" or "supervisor" in seen
            assert "Loop._turn" in functions
        await node.end()

    play(scenario)
