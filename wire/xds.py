"""The xDS stream to the control plane: delta ADS over gRPC and TLS, for ever.

`mesh.delta.DeltaClient` knows what to say; this shell connects, converts messages, hands every update to one consumer, and
answers with what the consumer refused. State outlives streams: a new one says which versions are held, so that after a
break only differences travel. A stream that ends is opened again, at once after a clean end, else after a pause that doubles
from 10 ms to 15 s. It starts over once a stream has delivered something that could be taken in and was cut off, or lasted: a
server that answers and refuses at once is left in peace, and so is one that ends streams as soon as it has answered them, one
after the other: only the end of a stream that lasted is clean.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import random
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status

from mesh import delta
from wire.grpc_reason import reason_of
from wire.grpc_tls import Endpoint
from wire.xds_response import read_response

_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 15.0
_LASTED_S = 1.0
_DEMAND_PAUSE_S = 0.005
"""Between requests for names: what comes up meanwhile goes into the next."""
_CUT_OFF = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""How servers, and what lies between, end streams that are merely old."""
_CUT_OFF_WORDS = ("transport is closing", "goaway", "stream removed", "socket closed", "cancelling all calls")
"""How the words of UNAVAILABLE say the same; others are a refusal."""
_PATIENCE_S = 30.0
"""A server that takes the stream but says nothing, or reads nothing any more, is given up for a new attempt: half-open
connections look like that, and one that hangs answers pings still."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeMetadata:
    """Who asks: the Node of the first requests. `extra` joins the metadata (ISTIO_META_X as X)."""

    role: str
    name: str
    namespace: str
    instance_ip: str
    node_name: str
    cluster_id: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_proto(self) -> Node:
        """The wire form, as Istio's ztunnel fills it."""
        metadata = {
            "NAME": self.name,
            "NAMESPACE": self.namespace,
            "INSTANCE_IPS": self.instance_ip,
            "NODE_NAME": self.node_name,
            "CLUSTER_ID": self.cluster_id,
            **self.extra,
        }
        place = f"{self.name}.{self.namespace}~{self.namespace}.svc.cluster.local"
        return Node(id=f"{self.role}~{self.instance_ip}~{place}", metadata=ParseDict(metadata, Struct()))


@dataclass(frozen=True, slots=True)
class Update:
    """One response's content: what it both removes and brings is there afterwards. Say which upserts are refused and why."""

    type_url: str
    upserts: Sequence[delta.Resource]
    removals: tuple[str, ...]
    body: bytes
    """The response as it came, with what was refused already: worth keeping."""
    refused: Collection[str] = ()
    """The names of that; it is not among the upserts."""


Answers = Callable[[Mapping[str, str]], None]
"""Hears which names that were asked for are answered: name -> why it was refused, empty if it was not."""

Consumer = Callable[[Update], Awaitable[Mapping[str, str]]]
"""Applies an update and returns the refused resources, name -> reason. What it raises ends the stream: it is told again."""


@dataclass(slots=True)
class XdsStatus:
    """What an operator wants to know of the stream."""

    connected: bool = False
    """A stream is open and has delivered something."""
    last_error: str = ""
    """Why the last stream ended, or could not be opened; empty while connected."""
    messages: Counter[str] = field(default_factory=Counter)
    message_bytes: Counter[str] = field(default_factory=Counter)
    """By type URL; of the resources' values, as Istio's ztunnel counts."""
    terminations: Counter[str] = field(default_factory=Counter)
    """By Istio's reasons: ConnectionError, Error, Reconnect, Complete."""


class XdsClient:
    """Keeps one consumer in step with a control plane."""

    def __init__(
        self,
        endpoint: Endpoint,
        node: NodeMetadata,
        type_urls: Iterable[str],
        on_update: Consumer,
        retained: Mapping[str, Iterable[delta.Resource]] | None = None,
        on_demand: Collection[str] = (),
        on_answers: Answers = lambda _: None,
    ) -> None:
        """Types are asked for in the order given; `retained` is, by type, what the consumer holds.

        Of types `on_demand` only what `demand` names is asked for, and `on_answers` hears when it was taken in.
        """
        self._endpoint = endpoint
        self._node = node
        self._on_update = on_update
        self._on_answers = on_answers
        self._client = delta.DeltaClient(type_urls, retained, on_demand)
        self._demanded = asyncio.Event()
        self._writing = asyncio.Lock()
        self._pause_s = _FIRST_PAUSE_S
        self.ready = False
        """Whether every type was answered at least once."""
        self._reported = ""
        self._unreached = 0
        """Attempts that reached nobody: the next goes by the other name of the server, if it has two."""
        self.status = XdsStatus()

    @property
    def address(self) -> str:
        """`host:port` of the control plane."""
        return self._endpoint.address

    def demand(self, type_url: str, names: Iterable[str]) -> None:
        """Ask for resources by name or alias; the answers come through `on_answers`.

        At once for what is held, unless there is a control plane that may know who else has an alias.
        """
        answers = {}
        for name in names:
            try:
                if not self._client.demand(type_url, name, self.status.connected):
                    answers[name] = ""
            except ValueError as error:
                answers[name] = str(error)
        if answers:
            self._on_answers(answers)
        self._demanded.set()

    def versions(self, type_url: str) -> dict[str, str]:
        """What is held of a type, name -> version."""
        return self._client.versions(type_url)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        ended_at_once = False
        while True:
            began, reason, unreached = time.monotonic(), "Error", False
            again, ended_at_once = ended_at_once, False
            try:
                self.status.last_error, reason = await self._one_stream(), "Complete"
            except grpc.aio.AioRpcError as error:
                reason = _termination(error, self.status.connected)
                unreached = error.code() is grpc.StatusCode.UNAVAILABLE and not self.status.connected
                self.status.last_error = reason_of(error, self._endpoint)
            except (OSError, ValueError) as error:
                self.status.last_error = str(error)
            except MemoryError:  # as below; where it ended says nothing
                self.status.last_error = (
                    "no memory is left to take an update in: raise the limit of this process or its container"
                )
                self.status.connected = False
            except Exception as error:  # of who takes updates in: what it holds serves, and it is told the rest again
                _log.exception("control plane %s: an update could not be taken in", self._endpoint.address)
                self.status.last_error = f"internal error: {error!r}"
                self.status.connected = False  # what the stream delivered is no reason to hurry: the next may deliver the same
            self.status.terminations[reason] += 1
            if self.status.connected:
                self.status.connected, lasted = False, time.monotonic() - began > _LASTED_S
                ended_at_once = reason == "Complete" and not lasted
                if lasted or (reason != "Error" and not (again and ended_at_once)):
                    self._pause_s = _FIRST_PAUSE_S
                if lasted and reason == "Complete":
                    continue
            elif unreached:
                self._unreached += 1
                if self._endpoint.server_name and self._unreached % 2:
                    continue  # both names of it are one attempt
            self._report_failure()
            # Many nodes lose their control plane at one moment: they should not all come back at another.
            await asyncio.sleep(self._pause_s * (0.5 + random() / 2))
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    def _report_failure(self) -> None:
        # The same words at every attempt would bury the log: once, and then at the pace of the longest pause.
        news = self.status.last_error != self._reported or self._pause_s >= _LONGEST_PAUSE_S
        self._reported = self.status.last_error
        address, error = self._endpoint.address, self.status.last_error
        level = logging.WARNING if news else logging.DEBUG
        _log.log(level, "control plane %s: %s; next attempt within %.2g s", address, error, self._pause_s)

    async def _one_stream(self) -> str:
        """Carry one stream to its end, and say why it ended. Raises: what broke it."""
        async with self._endpoint.open_channel(self._endpoint.root_pem(), self._unreached) as channel:
            method = channel.stream_stream(
                _METHOD,
                request_serializer=DeltaDiscoveryRequest.SerializeToString,
            )
            call = method(metadata=self._endpoint.metadata())
            async with _in_time("no answer within"):
                for request in self._client.open():
                    await self._write(call, request)
            async with self._demanding(call):
                async with _in_time("no answer within"):
                    body = await self._next(call)
                while body is not None:
                    answer = await self._take(body)
                    body = None  # the next may be hours away, and this one large
                    await self._write(call, answer)
                    if self._client.is_spent:
                        return "the stream carried as many names as one may, and makes room for another"
                    body = await self._next(call)
        return "the control plane ended the stream"

    @asynccontextmanager
    async def _demanding(self, call: Any) -> AsyncIterator[None]:
        """Send demands meanwhile. Raises: what ends that, when an update that is being taken in is."""
        task = asyncio.ensure_future(self._send_demands(call))
        try:
            yield
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                raise
            await asyncio.wait([task], timeout=_LASTED_S)  # it has given the call up
            if task.done():
                task.result()  # raises why
            raise OSError("the stream was cancelled") from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _send_demands(self, call: Any) -> None:
        while True:
            self._demanded.clear()
            while (request := self._client.next_demand()) is not None:
                await self._write(call, request)
                await asyncio.sleep(_DEMAND_PAUSE_S)
            await self._demanded.wait()

    async def _write(self, call: Any, request: delta.Request) -> None:
        async with self._writing, _in_time("nothing was read for"):  # it takes the first 64 KiB all the same
            try:
                await call.write(self._encode(request))
            except asyncio.InvalidStateError:
                # The stream has ended meanwhile: the next read says so, and why.
                return

    async def _next(self, call: Any) -> bytes | None:
        """The next response; None at the end of the stream."""
        body = await call.read()
        return None if body is grpc.aio.EOF else body

    async def _take(self, body: bytes) -> delta.Request:
        response = read_response(body)
        self.status.messages[response.type_url] += 1
        self.status.message_bytes[response.type_url] += response.value_bytes
        if not self.status.connected:
            _log.info("control plane %s: connected", self._endpoint.address)
        self.status.connected, self.status.last_error, self._reported = True, "", ""
        refused = self._client.excess(response)
        upserts = [one for one in response.resources if one.name not in refused] if refused else response.resources
        try:
            refused |= await self._on_update(Update(response.type_url, upserts, response.removed, body, tuple(refused)))
        except Exception:
            self._client.doubt(response)
            raise
        if refused:
            _log.warning("control plane sent %d resources that are refused: %s", len(refused), next(iter(refused.items())))
        answer = self._client.answer(response, refused)
        if answers := self._client.satisfied(response, refused):
            self._on_answers(answers)
        if self._client.ready:
            self.ready = True
        return answer

    def _encode(self, request: delta.Request) -> DeltaDiscoveryRequest:
        return DeltaDiscoveryRequest(
            node=self._node.to_proto() if request.initial else None,
            type_url=request.type_url,
            resource_names_subscribe=request.subscribe,
            resource_names_unsubscribe=request.unsubscribe,
            initial_resource_versions=dict(request.initial_versions),
            response_nonce=request.nonce,
            error_detail=Status(message=request.error) if request.error is not None else None,
        )


@asynccontextmanager
async def _in_time(otherwise: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            yield
    except TimeoutError:
        raise TimeoutError(f"{otherwise} {_PATIENCE_S:g} s") from None


def _termination(error: grpc.aio.AioRpcError, connected: bool) -> str:
    """Istio's word for how a stream ended: before it delivered anything, cut off, or refused."""
    if not connected:
        return "ConnectionError"
    said = (error.details() or "").lower()
    closed = error.code() is grpc.StatusCode.UNAVAILABLE and any(words in said for words in _CUT_OFF_WORDS)
    return "Reconnect" if closed or error.code() in _CUT_OFF else "Error"
