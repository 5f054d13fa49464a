"""A mesh that only answers: real gRPC and HTTP servers on the unix sockets where the command looks for the parts."""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from cli import dial
from cli.main import weft
from mesh.proto import agent_pb2, agent_pb2_grpc, control_pb2, control_pb2_grpc, observer_pb2, observer_pb2_grpc
from tests.cli.patience import DEADLINE_S, PATIENCE_S
from wire.places import Places


class _HttpServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    pages: dict[str, tuple[int, bytes]]
    headers: dict[str, str]
    """Of every page."""


class _Pages(BaseHTTPRequestHandler):
    server: _HttpServer

    def do_GET(self) -> None:
        status, body = self.server.pages.get(self.path, (404, b"not here\n"))
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return "unix"


class _Agent(agent_pb2_grpc.AgentServicer):
    def __init__(self, status: agent_pb2.StatusResponse) -> None:
        self._status = status

    def Status(self, request: agent_pb2.StatusRequest, context: grpc.ServicerContext) -> agent_pb2.StatusResponse:
        return self._status


class _Observer(observer_pb2_grpc.ObserverServicer):
    """Sends what it is given, remembers what it was asked, and refuses with `refusal` when that is set."""

    def __init__(self, responses: list[observer_pb2.GetFlowsResponse]) -> None:
        self.responses = responses
        self.asked: list[observer_pb2.GetFlowsRequest] = []
        self.refusal = ""
        self.silent = False
        self.live = threading.Event()
        self.server: grpc.Server

    def GetFlows(self, request: observer_pb2.GetFlowsRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        self.asked.append(request)
        if self.silent:
            self.live.wait(DEADLINE_S)
        context.send_initial_metadata(())
        if self.refusal:
            context.abort(grpc.StatusCode.UNKNOWN, self.refusal)
        yield from self.responses
        if request.follow:
            self.live.wait(DEADLINE_S)


class Control(control_pb2_grpc.ControlServicer):
    """Answers with what a test puts into its attributes; remembers the last request."""

    def __init__(self) -> None:
        self.status = control_pb2.StatusResponse()
        self.described: dict[str, list[dict[str, Any]]] = {}
        self.answer = control_pb2.ApplyResponse()
        self.asked: Any = None
        self.answers = threading.Event()
        """Cleared: changes are waited for."""
        self.answers.set()

    def Status(self, request: Any, context: grpc.ServicerContext) -> control_pb2.StatusResponse:
        return self.status

    def Describe(self, request: control_pb2.DescribeRequest, context: grpc.ServicerContext) -> control_pb2.DescribeResponse:
        return control_pb2.DescribeResponse(resources_json=[json.dumps(one) for one in self.described[request.kind]])

    def RotateRoot(self, request: control_pb2.RotateRootRequest, context: grpc.ServicerContext) -> control_pb2.RootRotation:
        self.asked = request
        if request.overlap_s == 1:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "an overlap of 1 s: certificates live up to 86400 s")
        return control_pb2.RootRotation(phase="announced", until_unix_s=1767225600)

    def NodeToken(self, request: Any, context: grpc.ServicerContext) -> control_pb2.NodeTokenResponse:
        if request.node == "nowhere":
            context.abort(grpc.StatusCode.NOT_FOUND, "Node nowhere is no object of the mesh: apply it first")
        return control_pb2.NodeTokenResponse(token=f"token of {request.node}", root_pem="PEM")

    def Apply(self, request: Any, context: grpc.ServicerContext) -> control_pb2.ApplyResponse:
        self.asked = request
        self.answers.wait(DEADLINE_S)
        return self.answer

    def Delete(self, request: Any, context: grpc.ServicerContext) -> control_pb2.ApplyResponse:
        self.asked = request
        return self.answer


class World:
    """The sockets of one installation, and the command run against them."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder / "run", folder / "state", "weft-test")
        self._folder = folder
        self._servers: list[grpc.Server] = []
        self._pages: list[_HttpServer] = []

    def weft(self, *arguments: str, input: str | None = None) -> Result:
        """Run the command."""
        environment = {"WEFT_RUN_DIR": str(self.places.run), "WEFT_STATE_DIR": str(self.places.state), "COLUMNS": "120"}
        return CliRunner().invoke(weft, arguments, input=input, env=environment, prog_name="weft")

    def agent(self, node: str, status: agent_pb2.StatusResponse) -> None:
        """Serve an agent's diagnostics."""
        server = self._server(self._socket_folder(self.places.node(node).agent_socket))
        agent_pb2_grpc.add_AgentServicer_to_server(_Agent(status), server)
        server.start()

    def observer(self, node: str, responses: list[observer_pb2.GetFlowsResponse]) -> _Observer:
        """Serve a node's flows."""
        server, observer = self._server(self._socket_folder(self.places.node(node).hubble_socket)), _Observer(responses)
        observer_pb2_grpc.add_ObserverServicer_to_server(observer, server)
        server.start()
        observer.server = server
        return observer

    def control(self) -> Control:
        """Serve the control plane's own API."""
        server, control = self._server(self._socket_folder(self.places.control_socket)), Control()
        control_pb2_grpc.add_ControlServicer_to_server(control, server)
        server.start()
        return control

    def proxy(
        self,
        node: str,
        dump: dict[str, Any] | bytes,
        ready: tuple[int, bytes] = (200, b"ready"),
        headers: dict[str, str] | None = None,
        **pages: Any,
    ) -> None:
        """Serve a proxy's admin endpoints."""
        server = _HttpServer(str(self._socket_folder(self.places.node(node).admin_socket)), _Pages)
        page = dump if isinstance(dump, bytes) else json.dumps(dump).encode()
        server.pages = {"/config_dump": (200, page), "/healthz/ready": ready}
        server.pages |= {f"/{name}": (200, json.dumps(page).encode()) for name, page in pages.items()}
        server.headers = headers or {}
        self._pages.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def withdraw(self, node: str) -> None:
        """End the node's proxy."""
        socket = self.places.node(node).admin_socket
        pages = next(one for one in self._pages if one.server_address == str(socket))
        self._pages.remove(pages)
        pages.shutdown()
        pages.server_close()
        socket.unlink()

    def node_folder(self, node: str) -> None:
        """A node without any process."""
        self.places.node(node).run.mkdir(parents=True)

    def _socket_folder(self, socket: Path) -> Path:
        socket.parent.mkdir(parents=True, exist_ok=True)
        return socket

    def _server(self, socket: Path) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_insecure_port(f"unix:{socket}")
        self._servers.append(server)
        return server

    def close(self) -> None:
        """End every server."""
        for server in self._servers:
            server.stop(0).wait()
        for pages in self._pages:
            pages.shutdown()
            pages.server_close()
        shutil.rmtree(self._folder)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An empty installation: tests put parts into it. The folder's name is short, for the sake of socket paths."""
    monkeypatch.setattr(dial, "TIMEOUT_S", PATIENCE_S)
    made = World(Path(tempfile.mkdtemp(prefix="weft-cli-")))
    yield made
    made.close()
