"""Flows from the nodes' Observer sockets: once, or for as long as the nodes are there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from cli import dial
from cli.dial import Answer, from_nodes, grpc_socket, rpc_failure
from cli.failure import Failure
from cli.flow_merge import LiveMerge
from cli.mend import continue_it, look_at_log
from mesh.proto.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from mesh.proto.observer_pb2_grpc import ObserverStub
from wire.places import NodePlaces

RETRY_S = 1.0
_HISTORY_S = 30.0
"""For all that a node has stored; what follows has no end."""
_QUEUE = 1024


async def history(nodes: list[NodePlaces], asked: GetFlowsRequest) -> list[Answer[list[GetFlowsResponse]]]:
    """What every node has stored, node by node; the ones that are down answer with their failure."""

    async def one(node: NodePlaces) -> list[GetFlowsResponse]:
        async with _observer(node) as stub:
            return [_stamped(node, response) async for response in await _answer(stub, asked, timeout=_HISTORY_S)]

    return await from_nodes(nodes, one)


async def follow(
    nodes: list[NodePlaces],
    asked: GetFlowsRequest,
    hold_s: float,
    show: Callable[[GetFlowsResponse], None],
    report: Callable[[Failure], None],
) -> None:
    """Show live flows of all nodes, merged by time, until cancelled. A node that goes away is reported once and asked again."""
    arrived: asyncio.Queue[GetFlowsResponse] = asyncio.Queue(_QUEUE)
    merge = LiveMerge(hold_s)
    clock = asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(_follow_one(node, asked, arrived, report))
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(merge.next_timer()):
                        merge.receive(await arrived.get(), clock())
                for response in merge.due(clock()):
                    show(response)
        except asyncio.CancelledError:
            for response in merge.rest():
                show(response)
            raise


async def _follow_one(
    node: NodePlaces, asked: GetFlowsRequest, arrived: asyncio.Queue[GetFlowsResponse], report: Callable[[Failure], None]
) -> None:
    """One node's live flows, across its restarts: the next stream starts after the last flow seen, so nothing comes twice."""
    request = GetFlowsRequest()
    request.CopyFrom(asked)
    down = False
    while True:
        try:
            async with _observer(node) as stub:
                async for response in await _answer(stub, request):
                    down = False
                    _continue_after(request, response)
                    await arrived.put(_stamped(node, response))
                await asyncio.sleep(RETRY_S)
        except Failure as failure:
            if not down:
                report(failure)
            down = True
            await asyncio.sleep(RETRY_S)


async def _answer(stub: ObserverStub, asked: GetFlowsRequest, **options: float) -> Any:
    """The stream, when it has begun: an Observer greets at once, however long its first flow is in coming."""
    call = stub.GetFlows(asked, **options)
    async with asyncio.timeout(dial.TIMEOUT_S):
        await call.initial_metadata()
    return call


def _continue_after(request: GetFlowsRequest, response: GetFlowsResponse) -> None:
    request.number = 0
    request.since.FromNanoseconds(response.time.ToNanoseconds() + 1)


def _stamped(node: NodePlaces, response: GetFlowsResponse) -> GetFlowsResponse:
    if not response.node_name:
        response.node_name = node.name
    return response


@contextlib.asynccontextmanager
async def _observer(node: NodePlaces) -> AsyncIterator[ObserverStub]:
    what, mend = f"flows of {node.name}", look_at_log(node, "agent")
    async with grpc_socket(what, node.hubble_socket, mend) as channel:
        try:
            yield ObserverStub(channel)
        except TimeoutError:
            reason = f"no answer on {node.hubble_socket} within {dial.TIMEOUT_S:g} s"
            raise Failure(what, reason, continue_it(node.hubble_socket) or mend) from None
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN):
                raise Failure(what, error.details() or "refused the filters") from None
            raise rpc_failure(error, what, node.hubble_socket, mend, _HISTORY_S) from None
