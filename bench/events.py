"""How long things take that happen now and then: enrolling a pod, putting a policy into force."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from bench.figures import Figure
from bench.stage import LoadError, Stage
from bench.topology import MESH, PODS, PORT, deny_policy
from wire.http_client import request

_TIMEOUT_S = 20.0
_SPARE = next(place for place in PODS if place.name == "spare")
_FAR = next(place for place in PODS if place.name == "far" and place.namespace == MESH)


def _post(socket: Path, path: str, body: dict[str, Any]) -> None:
    async def call() -> None:
        (await request(socket, "POST", path, json.dumps(body).encode(), _TIMEOUT_S)).check()

    asyncio.run(call())


def _pod_document(stage: Stage) -> dict[str, Any]:
    """What the lab knows of the spare pod."""

    async def call() -> Any:
        return json.loads((await request(stage.layout.socket, "GET", "/status")).check())

    for pod in asyncio.run(call())["pods"]:
        if (pod["namespace"], pod["name"]) == (_SPARE.namespace, _SPARE.name):
            found: dict[str, Any] = pod
            return found
    raise LoadError(f"the lab knows no pod {_SPARE.key}")


def enrolments(stage: Stage, times: int) -> Figure:
    """Seconds from `POST /cmdadd` to its answer, which comes when the kernel and the proxy have the pod.

    A pod without traffic is withdrawn and enrolled again; the first time, which also makes its certificate, is left out.
    """
    pod = _pod_document(stage)
    socket = stage.layout.places.node(_SPARE.node).agent_socket
    body = {
        "Netns": str(stage.netns(_SPARE)),
        "PodName": _SPARE.name,
        "PodNamespace": _SPARE.namespace,
        "IPs": [{"Interface": "eth0", "Address": {"IP": address.partition("/")[0]}} for address in pod["addresses"]],
        "UID": pod["uid"],
        "ServiceAccount": pod["serviceAccount"],
        "Labels": {"app": _SPARE.name},
        "CgroupPath": pod["cgroup"],
    }
    seconds = []
    for _ in range(times + 1):
        _post(socket, "/cmddel", {"UID": pod["uid"]})
        begin = time.monotonic()
        _post(socket, "/cmdadd", body)
        seconds.append(time.monotonic() - begin)
    return Figure.of(seconds[1:])


def policies(stage: Stage, times: int) -> dict[str, Figure]:
    """Seconds from the call of `weft apply` (its API, not the start of a command) until a policy holds.

    `refused`: the first new connection is refused. `closed`: a connection that was open is closed. `allowed`: after the
    policy was deleted, the first connection is answered again. A prober tries about every millisecond.
    """
    client, host = stage.clients[MESH], stage.address(_FAR)
    found: dict[str, list[float]] = {"refused": [], "closed": [], "allowed": []}
    for _ in range(times):
        client.order("until", host=host, port=PORT, refused=True, live=True, seconds=_TIMEOUT_S)
        client.answer()  # it has begun
        begin = time.monotonic()
        try:
            stage.apply(deny_policy())
            answer = client.answer()
        finally:
            freed = time.monotonic()
            stage.delete(deny_policy())
        found["refused"].append(answer["at_s"] - begin)
        found["closed"].append(answer["closed_s"] - begin)
        client.order("until", host=host, port=PORT, refused=False, seconds=_TIMEOUT_S)
        client.answer()
        found["allowed"].append(client.answer()["at_s"] - freed)
    return {name: Figure.of(seconds) for name, seconds in found.items()}
