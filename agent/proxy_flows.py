"""The proxy's flows: read from its admin socket as they come, and named with what only the agent knows.

A foreign proxy has no such stream; then there are the kernel's flows, and that is all.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from agent.pod_index import PodIndex
from mesh.proto import flow_pb2
from wire.http_unix import HttpError, open_stream, read_lines

RETRY_FIRST_S, RETRY_LONGEST_S = 0.2, 5.0
_MAX_LINE_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class ProxyFlows:
    """Follows `GET /flows` on the proxy's admin socket, for ever."""

    def __init__(
        self,
        admin_socket: Path,
        pods: Callable[[], PodIndex],
        on_flow: Callable[[flow_pb2.Flow], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._socket = admin_socket
        self._pods = pods
        self._on_flow = on_flow
        self._on_lost = on_lost
        self.connected = False
        self.unreadable = 0
        """Lines that were no flow."""

    async def run(self) -> None:
        """Read until cancelled."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._read()
                pause_s = RETRY_FIRST_S
            except (OSError, TimeoutError, HttpError) as error:
                if self.connected:
                    pause_s = RETRY_FIRST_S
                    _log.info("flows of the proxy ended: %s", error)
            self.connected = False
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_LONGEST_S)

    async def _read(self) -> None:
        async with open_stream(self._socket, "GET", "/flows") as (status, _, pieces):
            if status != 200:
                raise HttpError(status, "the proxy serves no flows")
            self.connected = True
            async for line in read_lines(pieces, _MAX_LINE_BYTES):
                if line.strip():
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = parse_line(line)
        except ValueError:
            self.unreadable += 1
            return
        if isinstance(event, flow_pb2.LostEvent):
            self._on_lost(event.num_events_lost)
        else:
            self._on_flow(name_pods(event, self._pods()))


def parse_line(line: bytes) -> flow_pb2.Flow | flow_pb2.LostEvent:
    """A flow in JSON, or `{"lost_events": {...}}`; unknown fields are left out. Raises: ValueError for anything else."""
    try:
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        lost = document.get("lost_events")
        if lost is not None:
            return json_format.ParseDict(lost, flow_pb2.LostEvent(), ignore_unknown_fields=True)
        return _flow_of(document)
    except (json_format.ParseError, RecursionError, AttributeError, TypeError) as error:
        raise ValueError(f"not a flow: {error}") from error


def _flow_of(document: dict[str, Any]) -> flow_pb2.Flow:
    """As json_format does, which takes 280 us; a message made straight of a dictionary takes 20, but only of known fields."""
    try:
        plain = dict(document)
        if "time" in plain:
            plain["time"] = Timestamp()
            plain["time"].FromJsonString(document["time"])
        if "is_reply" in plain:
            plain["is_reply"] = {"value": document["is_reply"]}
        return flow_pb2.Flow(**plain)
    except (ValueError, TypeError, AttributeError):
        return json_format.ParseDict(document, flow_pb2.Flow(), ignore_unknown_fields=True)


def name_pods(flow: flow_pb2.Flow, pods: PodIndex) -> flow_pb2.Flow:
    """The flow with the labels of the pods that run here: control does not send them, the runtime does."""
    for end in (flow.source, flow.destination):
        pod = pods.by_name.get((end.namespace, end.pod_name))
        if pod is not None:
            named = {label.partition("=")[0] for label in pod.flow_labels}
            labels = {*pod.flow_labels, *(label for label in end.labels if label.partition("=")[0] not in named)}
            end.ClearField("labels")
            end.labels.extend(sorted(labels))
    return flow
