"""Whether a running container is ready: the counting is pure, the asking is done by its node's prober or inside the pod."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.launch import Launch
from lab.process import LaunchError, run_joined
from mesh.manifests import Probe
from wire.http_client import request
from wire.http_messages import HttpError

_SLACK_S = 5.0


@dataclass(slots=True)
class Readiness:
    """Counts a probe's results: so many in a row change what holds."""

    probe: Probe
    ready: bool = False
    _streak: int = 0
    _last: bool = False

    def count(self, success: bool) -> bool:
        """Take one result; whether the container is ready now."""
        self._streak = self._streak + 1 if success == self._last else 1
        self._last = success
        needed = self.probe.success_threshold if success else self.probe.failure_threshold
        if self._streak >= needed:
            self.ready = success
        return self.ready


async def ask(probe: Probe, prober: Path, addresses: Sequence[str], joined: Launch) -> str:
    """Make one attempt: empty when it succeeded, else why not. `joined` is how to run a command inside the container."""
    if probe.command:
        try:
            code = await run_joined(joined, probe.timeout_s)
        except (LaunchError, OSError) as error:
            return str(error)
        command = " ".join(probe.command)
        return (
            ""
            if code == 0
            else f"{command}: no end within {probe.timeout_s:g} s"
            if code is None
            else f"{command}: exit {code}"
        )
    if not addresses:
        return "the pod has no address"
    order = {
        "address": addresses[0],
        "port": probe.http_port or probe.tcp_port,
        "http_path": probe.http_path,
        "http_host": probe.http_host,
        "timeout_s": probe.timeout_s,
    }
    try:
        reply = await request(prober, "POST", "/probe", json.dumps(order).encode(), probe.timeout_s + _SLACK_S)
        return str(json.loads(reply.check())["reason"])
    except (OSError, TimeoutError, HttpError) as error:
        return f"the node's prober does not answer: {error}"
