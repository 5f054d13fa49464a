"""A real weft-control in folders of its own, and clients that speak to it as nodes and operators do."""

import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from mesh.proto import certificate_pb2, certificate_pb2_grpc, control_pb2, control_pb2_grpc

DEADLINE_S = 100
OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    # Of the control plane before on the same socket a shared pool may have a connection that has not noticed its end.
    ("grpc.use_local_subchannel_pool", 1),
]
_LISTENING = re.compile(r"listening: address=(\S+) for=(node tokens|certificates)")


class NodeStream:
    """One delta stream of one node: requests out, responses in, in order."""

    def __init__(self, channel: grpc.Channel, node: str, metadata: list[tuple[str, str]]) -> None:
        self._node = node
        self._requests: queue.Queue[DeltaDiscoveryRequest | None] = queue.Queue()
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        self.call = stub.DeltaAggregatedResources(iter(self._requests.get, None), timeout=DEADLINE_S, metadata=metadata)

    def send(self, type_url: str, *, node: bool = False, node_name: str | None = None, **fields: object) -> None:
        """Send one request; with `node` it introduces itself."""
        request = DeltaDiscoveryRequest(type_url=type_url, **fields)  # type: ignore[arg-type]
        if node:
            metadata = ParseDict({"NODE_NAME": self._node if node_name is None else node_name}, Struct())
            request.node.CopyFrom(Node(id=f"ztunnel~10.0.0.1~{self._node}.weft~weft.svc.cluster.local", metadata=metadata))
        self._requests.put(request)

    def receive(self) -> DeltaDiscoveryResponse:
        """The next response."""
        response: DeltaDiscoveryResponse = next(self.call)
        return response

    def acknowledge(self, response: DeltaDiscoveryResponse, refusal: str = "") -> None:
        """ACK, or NACK with a reason."""
        request = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        if refusal:
            request.error_detail.message = refusal
        self._requests.put(request)

    def take(self) -> DeltaDiscoveryResponse:
        """The next response, acknowledged."""
        response = self.receive()
        self.acknowledge(response)
        return response

    def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended."""
        with pytest.raises(grpc.RpcError) as ended:
            while True:
                next(self.call)
        return ended.value.code(), ended.value.details()

    def close(self) -> None:
        """Leave."""
        self._requests.put(None)
        self.call.cancel()


class ControlProcess:
    """weft-control as a process, with folders that outlive it."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.state = folder / "state"
        self.manifests = self.state / "control" / "manifests"
        self.log = folder / "log"
        self.tokens: dict[str, str] = {}
        self.root_pem = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: list[grpc.Channel] = []
        self._streams: list[NodeStream] = []

    def start(self, *flags: str, ready: str = "control ready:") -> None:
        """Start, and wait until it says that it is ready."""
        environment = os.environ | {"WEFT_RUN_DIR": str(self.run), "WEFT_STATE_DIR": str(self.state)}
        command = [sys.executable, "-m", "control", "--listen", "127.0.0.1:0", *flags]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.wait_for_log(ready)
        channel = grpc.insecure_channel(f"unix:{self.run / 'control.sock'}", OPTIONS)
        self._channels.append(channel)
        self.stub = control_pb2_grpc.ControlStub(channel)

    def wait_for_log(self, text: str) -> None:
        """Wait until its log holds a text."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.log.read_text():
            assert self._process is not None and self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it as an init system would; nothing is left of who spoke to it, nor a thread that waits for what to say."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(DEADLINE_S) == 0, self.log.read_text()
            self._process = None

    def address(self, purpose: str = "node tokens") -> str:
        """Where it listens."""
        return next(match[1] for match in _LISTENING.finditer(self.log.read_text()) if match[2] == purpose)

    def apply(self, yaml: str, *, dry_run: bool = False, name: str = "test.yaml") -> control_pb2.ApplyResponse:
        """`weft apply`."""
        files = [control_pb2.ManifestFile(name=name, yaml=yaml)]
        return self.stub.Apply(control_pb2.ApplyRequest(files=files, dry_run=dry_run), timeout=DEADLINE_S)

    def delete(self, yaml: str, *, dry_run: bool = False) -> control_pb2.ApplyResponse:
        """`weft delete`."""
        files = [control_pb2.ManifestFile(name="test.yaml", yaml=yaml)]
        return self.stub.Delete(control_pb2.DeleteRequest(files=files, dry_run=dry_run), timeout=DEADLINE_S)

    def report(self, *pods: Mapping[str, object], reporter: str = "lab") -> None:
        """Report these pods as all there are."""
        defaults = {"namespace": "demo", "uid": "some-uid", "phase": "Running", "ready": True, "enrolled": True}
        reports = [control_pb2.PodReport(**(defaults | dict(pod))) for pod in pods]
        self.stub.ReportPods(control_pb2.ReportPodsRequest(reporter=reporter, pods=reports), timeout=DEADLINE_S)

    def watch(self, *kinds: str) -> Iterator[control_pb2.ObjectSet]:
        """Every set of objects from now on."""
        return self.stub.WatchObjects(control_pb2.WatchObjectsRequest(kinds=kinds), timeout=DEADLINE_S)

    def status(self) -> control_pb2.StatusResponse:
        """Its own words about itself."""
        return self.stub.Status(control_pb2.StatusRequest(), timeout=DEADLINE_S)

    def token(self, node: str) -> str:
        """A token of a node; the newest one after the first call."""
        response = self.stub.NodeToken(control_pb2.NodeTokenRequest(node=node), timeout=DEADLINE_S)
        self.root_pem = response.root_pem
        self.tokens[node] = response.token
        return str(response.token)

    def channel(self, purpose: str = "node tokens", key: bytes | None = None, chain: bytes | None = None) -> grpc.Channel:
        """A TLS channel that trusts control's root, with a client certificate where there is a key."""
        credentials = grpc.ssl_channel_credentials(self.root_pem.encode(), key, chain)
        named = ("grpc.ssl_target_name_override", "weft-control")
        channel = grpc.secure_channel(self.address(purpose), credentials, [*OPTIONS, named])
        self._channels.append(channel)
        return channel

    def stream(
        self, node: str, *, token: str | None = None, channel: grpc.Channel | None = None, cluster: str = "Kubernetes"
    ) -> NodeStream:
        """An xDS stream with the node's token, or another, or (empty) none; the same for the cluster."""
        shown = self.tokens.get(node, "") if token is None else token
        metadata = [("authorization", f"Bearer {shown}")] if shown else []
        metadata += [("clusterid", cluster)] if cluster else []
        self._streams.append(NodeStream(channel or self.channel(), node, metadata))
        return self._streams[-1]

    def certificate(
        self, request: certificate_pb2.IstioCertificateRequest, token: str, cluster: str | None = "Kubernetes"
    ) -> list[str]:
        """Ask the CA; returns the chain."""
        metadata = [("authorization", f"Bearer {token}")] + ([("clusterid", cluster)] if cluster else [])
        stub = certificate_pb2_grpc.IstioCertificateServiceStub(self.channel())
        return list(stub.CreateCertificate(request, timeout=DEADLINE_S, metadata=metadata).cert_chain)


@pytest.fixture
def new_control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], ControlProcess]]:
    """Make control planes that are not started yet; all are stopped in the end."""
    made: list[ControlProcess] = []

    def make() -> ControlProcess:
        # A short path: a unix socket's has at most 107 bytes.
        made.append(ControlProcess(tmp_path_factory.mktemp("c")))
        return made[-1]

    yield make
    for control in made:
        control.stop()


@pytest.fixture
def control(new_control: Callable[[], ControlProcess]) -> ControlProcess:
    """A running control plane."""
    made = new_control()
    made.start()
    return made
