"""What the lab's tests share: small manifests, and a look at the host that a lab must not change."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.accounts import started_s
from lab import cgroup
from tests.lab.world import World
from wire import keyring
from wire.cgroup import cgroup2_mount

BASE = """
apiVersion: v1
kind: Node
metadata: {name: a}
---
apiVersion: v1
kind: Node
metadata: {name: b}
"""


def deployment(replicas: int, label: str = "one", command: str = "[sleep, infinity]") -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web, version: {label}}}}}
    spec: {{containers: [{{name: c, command: {command}}}]}}
"""


def pod(name: str, command: str, extra: str = "", container: str = "") -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop}}
spec:
  {extra}
  containers: [{{name: c, command: {command}{container}}}]
"""


def processes(world: World) -> dict[str, int]:
    return {
        f"{one['namespace']}/{one['name']}": one["containers"][0]["pid"] for one in world.status()["pods"] if one["containers"]
    }


def daemon_pid(world: World) -> int:
    """The oldest in its cgroup: what it starts is there for a moment, too."""
    started = []
    for pid in cgroup.processes(world.layout.lab_cgroup):
        with suppress(OSError):  # one of those, which has ended since
            started.append((started_s(pid), pid))
    return min(started)[1]


def runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def host_network() -> dict[str, Any]:
    commands = (
        ["ip", "-o", "addr"],
        ["ip", "-4", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["nft", "list", "ruleset"],
    )
    shown = {" ".join(argv): subprocess.run(argv, capture_output=True, text=True, check=True).stdout for argv in commands}
    shown["ip -o addr"] = "\n".join(line.split(" valid_lft ")[0] for line in shown["ip -o addr"].splitlines())
    counted = r" (expires \d+sec|packets \d+ bytes \d+)"  # whatever the host itself does meanwhile
    shown = {command: re.sub(counted, "", text) for command, text in shown.items()}
    for folder in ("ipv4", "ipv6"):
        for path in sorted(Path(f"/proc/sys/net/{folder}/conf").glob("*/*")):
            try:
                shown[str(path)] = path.read_text()
            except OSError:
                continue  # some can only be written
    for name in ("ipv4/ip_forward", "ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"):
        shown[name] = Path("/proc/sys/net", name).read_text()
    return shown


def leftovers(world: World) -> list[str]:
    layout = world.layout
    prefix = layout.places.prefix
    found = [str(path) for path in (layout.places.run, layout.places.state, cgroup2_mount() / prefix) if path.exists()]
    found += [path.name for path in Path("/run/netns").iterdir() if path.name.startswith(f"{prefix}-")]
    found += keyring.names(keyring.scope(prefix))
    return found + [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/{prefix}/" in line]
