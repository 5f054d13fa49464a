"""A pair of proxies as the peer to measure beside: where the two run, and how long they live."""

import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a pair runs: network namespaces by path, what the client dials, the tunnel's far end, and the server behind."""

    client_netns: Path
    server_netns: Path
    client_port: int
    tunnel: tuple[str, int]
    backend_port: int


def start(stack: ExitStack, netns: Path, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run a proxy in a network namespace until the stack closes; gives its pid.

    In a session of its own, as lab starts weft's: the kernel divides CPUs among sessions first (sched(7), autogroup). Proxies
    that shared one with the load generator were quicker at one connection and slower at many. The kernel ends it where this
    process is killed and ends nothing itself.
    """
    output = stack.enter_context(log.open("wb"))
    argv = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={netns}", "--", *command]
    told = None if environment is None else dict(environment)
    process = subprocess.Popen(argv, stdout=output, stderr=output, env=told, start_new_session=True)
    stack.callback(_end, process)
    return process.pid


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
