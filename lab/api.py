"""The daemon's API on lab.sock: what runs, how to get into a pod, and the few things to ask of it. JSON over HTTP/1.1.

GET /status; POST /apply, /delete {"files": {name: yaml}}; POST /mesh {"enabled": bool}; POST /restart {"node": name};
GET /join?pod=NS/NAME[&container=NAME].
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from google.protobuf.json_format import MessageToDict

from lab.daemon import Daemon
from lab.node import NodeRun
from lab.pod import PodState
from lab.process import LaunchError
from mesh.proto import control_pb2
from wire.http_messages import HttpError, Request, Response
from wire.http_server import Handler


class Api:
    """Answers for one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> dict[str, Handler]:
        """What is served."""
        return {
            "GET /status": self.status,
            "POST /apply": self.apply,
            "POST /delete": self.delete,
            "POST /mesh": self.mesh,
            "POST /restart": self.restart,
            "GET /join": self.join,
        }

    async def status(self, _: Request) -> Response:
        """The whole lab, and what is not ready yet: `unready`, a sentence each; empty when all is."""
        daemon = self._daemon
        runs = dict(sorted(daemon.nodes.items()))
        reasons = await asyncio.gather(*(node.unready() for node in runs.values()))
        nodes = dict(zip(runs, reasons, strict=True))
        pods = daemon.pod_states()
        document = {
            "prefix": daemon.layout.places.prefix,
            "mesh": daemon.mesh,
            "control": asdict(daemon.control.state),
            "nodes": [_node(runs[name], reason) for name, reason in nodes.items()],
            "pods": [_pod(daemon, state) for state in pods],
            "unready": await self._unready(nodes, pods),
        }
        return Response.json(document)

    async def _unready(self, nodes: dict[str, str], pods: list[PodState]) -> list[str]:
        daemon = self._daemon
        found = []
        if daemon.control.state.pid == 0:
            found.append(f"control: {daemon.control.state.reason}")
        elif not daemon.settled:
            found.append("the newest objects are being acted upon")
        found += daemon.wanted.problems
        found += [f"{subject}: {reason}" for subject, reason in daemon.problems.items()]
        found += [reason for reason in nodes.values() if reason]
        found += [f"Node {name} is not there yet" for name in sorted(daemon.wanted.nodes.keys() - nodes.keys())]
        found += [f"Pod {key}: {reason}" for key, reason in sorted(daemon.wanted.waiting.items())]
        known = {state.wish.key for state in pods}
        found += [f"Pod {key} is not there yet" for key in sorted(daemon.wanted.pods.keys() - known)]
        found += [f"Pod {one.wish.key}: {_unready_pod(daemon, one)}" for one in pods if _unready_pod(daemon, one)]
        if daemon.mesh and not found and nodes:
            found += await self._unacknowledged()
        return found

    async def _unacknowledged(self) -> list[str]:
        try:
            acknowledged = await self._daemon.link.acknowledged()
        except OSError as error:
            return [str(error)]
        return [
            f"Node {name} has not taken the newest configuration yet"
            for name in sorted(self._daemon.nodes)
            if not acknowledged.get(name, False)
        ]

    async def apply(self, request: Request) -> Response:
        """Hand manifests to control; answer as it does, once the daemon has seen what came of it."""
        return await self._change(request, self._daemon.link.apply)

    async def delete(self, request: Request) -> Response:
        """Have the objects of manifests removed; answer as `apply`."""
        return await self._change(request, self._daemon.link.delete)

    async def _change(
        self, request: Request, change: Callable[[Mapping[str, str]], Awaitable[control_pb2.ApplyResponse]]
    ) -> Response:
        files = _document(request).get("files")
        if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
            raise HttpError(400, "files: expected an object of name: text")
        try:
            reply = await change(files)
            self._daemon.take(await self._daemon.link.snapshot())
        except OSError as error:
            raise HttpError(503, str(error)) from error
        return Response.json(MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))

    async def mesh(self, request: Request) -> Response:
        """Put the mesh on or off the same topology."""
        enabled = _document(request).get("enabled")
        if not isinstance(enabled, bool):
            raise HttpError(400, "enabled: expected true or false")
        self._daemon.set_mesh(enabled)
        return Response.json({"mesh": enabled})

    async def restart(self, request: Request) -> Response:
        """Replace the proxy of a node by a new process of it, without a gap."""
        name = _document(request).get("node")
        node = self._daemon.nodes.get(name) if isinstance(name, str) else None
        if node is None:
            raise HttpError(404, f"node {name}: not in this lab; known here: {', '.join(sorted(self._daemon.nodes))}")
        began = time.monotonic()
        try:
            old, new = await node.replace_proxy()
        except (LaunchError, OSError) as error:
            raise HttpError(503, str(error)) from error
        return Response.json({"node": name, "old": old, "new": new, "seconds": round(time.monotonic() - began, 3)})

    async def join(self, request: Request) -> Response:
        """How to run a program inside a container: a launch order without its arguments."""
        key, container = request.query.get("pod", ""), request.query.get("container", "")
        pod = self._daemon.pod(key)
        if pod is None:
            raise HttpError(404, f"there is no pod {key}: see weft lab status")
        run = pod.container(container)
        if run is None or run.state.pid == 0:
            what = f"container {container or 'of it'}"
            raise HttpError(409, f"pod {key}: no {what} runs: {pod.state.reason or pod.state.phase}")
        return Response.json(run.joined(()).document())


def _unready_pod(daemon: Daemon, state: PodState) -> str:
    wish = daemon.wanted.pods.get(state.wish.key)
    if wish is None or wish.life != state.wish.life:
        return "is being removed"
    if state.phase == "Succeeded":
        return ""
    if not state.ready:
        return state.reason or state.phase
    if state.enrolled != wish.enrol:
        return "waiting to be enrolled" if wish.enrol else "waiting to be withdrawn"
    return ""


def _document(request: Request) -> dict[str, Any]:
    try:
        document = json.loads(request.body)
    except ValueError as error:
        raise HttpError(400, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise HttpError(400, "the body is not a JSON object")
    return document


def _node(node: NodeRun, unready: str) -> dict[str, Any]:
    return {
        "name": node.name,
        "addresses": [str(one.ip) for one in node.addresses.underlay],
        "podCIDRs": [str(network) for network in node.addresses.ranges],
        "programs": {part: asdict(program) for part, program in node.programs.items()},
        "unready": unready,
    }


def _pod(daemon: Daemon, state: PodState) -> dict[str, Any]:
    wish, layout = state.wish, daemon.layout
    return {
        "namespace": wish.pod.namespace,
        "name": wish.pod.name,
        "uid": wish.uid,
        "node": wish.node,
        "serviceAccount": wish.pod.spec.service_account,
        "addresses": state.addresses,
        "phase": state.phase,
        "ready": state.ready,
        "enrolled": state.enrolled,
        "restarts": state.restarts,
        "reason": state.reason,
        "netns": layout.node_netns(wish.node) if wish.host_network else layout.pod_netns(wish.node, wish.key),
        "cgroup": str(layout.pod_cgroup(wish.node, wish.key)),
        "containers": [asdict(one) for one in state.containers],
    }
