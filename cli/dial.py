"""The sockets that the commands talk to, each with what to say when nobody answers."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from cli.failure import Failure, Forbidden, Incomplete, explained, warn
from cli.mend import START_A_MESH, continue_it, has_control, is_lab, look_at_log
from mesh.proto.agent_pb2 import StatusRequest, StatusResponse
from mesh.proto.agent_pb2_grpc import AgentStub
from mesh.proto.control_pb2_grpc import ControlStub
from wire.http_client import request
from wire.http_messages import HttpError
from wire.places import NodePlaces, Places

TIMEOUT_S = 5.0
"""Of a call. Read as `dial.TIMEOUT_S` when it is made: tests put another there."""
_NOT_READY = "not ready, pending: "
MAX_MESSAGE_BYTES = 64 << 20
_OPTIONS = (("grpc.default_authority", "localhost"), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What one node said, or why it said nothing, or not all."""

    node: str
    value: T | None
    failure: Failure | None = None


def chosen_nodes(places: Places, names: Iterable[str]) -> list[NodePlaces]:
    """The nodes that were named, all where none was.

    Raises: Failure when there is none, or none of a given name.
    """
    known = places.nodes()
    if not known:
        raise Failure("no node here", f"{places.run / 'nodes'} is empty", START_A_MESH)
    wanted = list(dict.fromkeys(names)) or known
    for name in wanted:
        if name not in known:
            raise Failure(f"node {name}", "not on this machine", f"known here: {', '.join(known)}")
    return [places.node(name) for name in wanted]


async def from_nodes(nodes: list[NodePlaces], fetch: Callable[[NodePlaces], Awaitable[T]]) -> list[Answer[T]]:
    """Ask all nodes at once; a node that fails does not keep the others from answering."""

    async def one(node: NodePlaces) -> Answer[T]:
        try:
            return Answer(node.name, await fetch(node))
        except Incomplete as failure:
            return Answer(node.name, failure.found, failure)
        except Failure as failure:
            return Answer(node.name, None, failure)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(node)) for node in nodes]
    return [task.result() for task in tasks]


def report_failures(answers: Iterable[Answer[Any]]) -> bool:
    """Say on stderr which nodes did not answer in full; whether all did."""
    failed = [answer.failure for answer in answers if answer.failure]
    for failure in failed:
        warn(failure.message)
    return not failed


async def proxy_json(node: NodePlaces, path: str) -> Any:
    """A JSON object from the node's proxy, which need not be weft's. Raises: Failure."""
    return (await proxy_document(node, path, dict))[0]


async def proxy_document(node: NodePlaces, path: str, kind: type) -> tuple[Any, Mapping[str, str]]:
    """A JSON document of this kind from the node's proxy, with the headers that it came with. Raises: Failure."""
    what = f"proxy of {node.name}"
    with explained(what, node.admin_socket, look_at_log(node, "ztunnel")):
        try:
            reply = await request(node.admin_socket, "GET", path, timeout_s=TIMEOUT_S)
            found = json.loads(reply.check())
        except HttpError as error:
            raise Failure(what, f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise Failure(what, f"{path}: no JSON: {error}") from None
    if not isinstance(found, kind):
        raise Failure(what, f"{path}: {type(found).__name__}, not {kind.__name__}")
    return found, reply.headers


async def proxy_readiness(node: NodePlaces) -> str:
    """Empty when the node's proxy is ready, else what it waits for. Raises: Failure."""
    with explained(f"proxy of {node.name}", node.admin_socket, look_at_log(node, "ztunnel")):
        try:
            reply = await request(node.admin_socket, "GET", "/healthz/ready", timeout_s=TIMEOUT_S)
        except HttpError as error:
            return str(error)
        if reply.status == 200:
            return ""
        return reply.body.decode(errors="replace").strip().removeprefix(_NOT_READY) or f"status {reply.status}"


async def agent_status(node: NodePlaces) -> StatusResponse:
    """The node agent's diagnostics. Raises: Failure."""
    async with grpc_socket(f"agent of {node.name}", node.agent_socket, look_at_log(node, "agent")) as channel:
        status: StatusResponse = await AgentStub(channel).Status(StatusRequest(), timeout=TIMEOUT_S)
        return status


@asynccontextmanager
async def control_stub(places: Places, timeout_s: float = TIMEOUT_S) -> AsyncIterator[ControlStub]:
    """The control plane's own API, for the body, whose calls have so long. Raises: Failure for what goes wrong in the body."""
    if not has_control(places):
        mend = "run this where weft-control runs" if places.nodes() else START_A_MESH
        raise Failure("control plane", f"not on this machine: nobody serves {places.control_socket}", mend)
    mend = "look at: weft lab logs control" if is_lab(places) else "look at the log of weft-control"
    async with grpc_socket("control plane", places.control_socket, mend, timeout_s) as channel:
        yield ControlStub(channel)


@asynccontextmanager
async def grpc_socket(what: str, socket: Path, mend: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a unix socket for the body, whose gRPC errors become a Failure about `what`; `timeout_s`: of its calls."""
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        try:
            yield channel
        except grpc.aio.AioRpcError as error:
            raise rpc_failure(error, what, socket, mend, timeout_s) from None


def rpc_failure(error: grpc.aio.AioRpcError, what: str, socket: Path, mend: str, timeout_s: float) -> Failure:
    """One clear line for a gRPC error."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        exists = os.access(socket, os.F_OK)
        if exists and not os.access(socket, os.W_OK):
            return Forbidden(what, socket)
        there = "does not answer" if exists else "does not exist: nobody serves it"
        return Failure(what, f"{socket} {there}", continue_it(socket) or mend)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(what, f"no answer on {socket} within {timeout_s:g} s", continue_it(socket) or mend)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Failure(what, "does not know this call: its version differs from this command's", "compare with: weft version")
    return Failure(what, error.details() or str(error.code()))
