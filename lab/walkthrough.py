"""The demo: brings up lab/demo/, and shows the mesh at work with unmodified programs. Run by `make demo`.

Everything is done with the `weft` command, as a user would do it; each step says what it expects, and counts only what it
saw. The lab stays up afterwards.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.capture import Capture
from wire.places import Places

WEFT = str(Path(sys.executable).with_name("weft"))
DEMO = Path(__file__).parent / "demo"
MARKER = b"WEFT-PLAINTEXT-MARKER"
WEB = ("curl", "-sS", "--max-time", "8", "http://web.shop/")
PATIENCE_S = 15.0

REDIS_CLOSED = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: stores-for-worker, namespace: data}
spec:
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/data/sa/worker]}}]
      to: [{operation: {ports: ["5432"]}}]
"""


class Unexpected(Exception):
    """A step did not see what it must see."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the final table."""

    title: str
    seen: str
    took_s: float
    good: bool


def weft(*arguments: str, timeout_s: float = 60, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does; the caller judges the outcome."""
    return subprocess.run([WEFT, *arguments], input=given, capture_output=True, text=True, timeout=timeout_s, check=False)


def done(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that must have worked. Raises: Unexpected."""
    if result.returncode != 0:
        raise Unexpected(f"`weft {' '.join(result.args[1:])}`: {(result.stderr or result.stdout).strip()[-600:]}")
    return result.stdout


def inside(pod: str, *command: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    """Run a program in a pod."""
    return weft("lab", "exec", pod, "--", *command, timeout_s=timeout_s)


def awaited(what: str, look: Callable[[], str]) -> str:
    """Look again and again until there is something to see. Raises: Unexpected after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.1)
    raise Unexpected(f"waited {PATIENCE_S:.0f} s for {what}")


def require(condition: bool, what: str) -> None:
    """Go on only if so. Raises: Unexpected."""
    if not condition:
        raise Unexpected(what)


def pods() -> dict[str, dict[str, Any]]:
    """What the lab runs, by namespace/name."""
    document = json.loads(done(weft("lab", "status", "-o", "json")))
    return {f"{one['namespace']}/{one['name']}": one for one in document["pods"]}


def node_namespace(node: str) -> str:
    """The network namespace of a lab node."""
    return f"{Places.from_environment().prefix}-{node}"


def captured_page(folder: Path, name: str) -> Capture:
    """Fetch the page from the other node while the link between the nodes is recorded."""
    with Capture(node_namespace("node-a"), "eth0", folder / name) as capture:
        page = done(inside("shop/browser", *WEB))
    require(MARKER.decode() in page, f"the page came without its marker: {page[:80]!r}")
    return capture


def without_mesh(folder: Path) -> str:
    """The same topology without agents and proxies: the marker crosses the link for all to read."""
    done(weft("lab", "up", "--no-mesh", str(DEMO), timeout_s=180))
    capture = captured_page(folder, "plain.pcap")
    require(MARKER in capture.raw(), "the capture without the mesh lacks the marker: it would prove nothing")
    return f"the marker is readable on the link ({capture.packets('tcp port 80')} packets of plain HTTP)"


def bring_up(_: Path) -> str:
    """Agents, proxies, certificates, policies."""
    done(weft("lab", "up", str(DEMO), timeout_s=180))
    found = pods()
    enrolled = sum(one["enrolled"] for one in found.values())
    nodes = {one["node"] for one in found.values()}
    return f"{len(found)} pods on {len(nodes)} nodes, {enrolled} of them enrolled"


def programs_work(_: Path) -> str:
    """curl, redis-cli and psql do their work across nodes."""
    page = done(inside("shop/browser", *WEB)).strip()
    done(inside("data/cache-worker", "redis-cli", "-h", "redis.data", "SET", "greeting", "hello from node-a"))
    value = done(inside("data/cache-worker", "redis-cli", "-h", "redis.data", "GET", "greeting")).strip()
    require("hello from node-a" in value, f"redis answered {value!r}")
    query = "create temp table t as select generate_series(1, 1000) n; select sum(n) from t"
    total = done(inside("data/sql-worker", "psql", "-h", "postgres.data", "-U", "postgres", "-Atc", query)).split()[-1]
    require(total == "500500", f"PostgreSQL answered {total!r}")
    return f"curl: {len(page)} bytes; redis: {value!r}; psql: sum(1..1000) = {total}"


def encrypted(folder: Path) -> str:
    """The link holds TLS on 15008, and not one byte of the marker."""
    capture = captured_page(folder, "mesh.pcap")
    require(MARKER not in capture.raw(), "the marker crossed the link in plain")
    records = capture.tls_records(15008)
    require(records > 0, "no TLS on port 15008 was captured")
    plain = capture.packets("tcp port 80")
    require(plain == 0, f"{plain} packets went to port 80 beside the tunnel")
    return f"{records} TLS records on port 15008, no plain packet, no marker"


def source_address(_: Path) -> str:
    """nginx sees the address of the pod that asked."""
    clients = tuple(f"client={address}:" for address in pods()["shop/browser"]["addresses"])
    mark = f"asked-{secrets.token_hex(4)}"  # of this very request, not of one without the mesh
    done(inside("shop/browser", *WEB[:-1], f"{WEB[-1]}?{mark}"))
    line = awaited(
        f"a line of nginx with {mark}",
        lambda: next((line for line in weft("lab", "logs", "shop/web").stdout.splitlines() if mark in line), ""),
    )
    require(line.startswith(clients), f"nginx saw another client than {clients}: {line}")
    return f"nginx logged: {line}"


def flow_of_refusal(namespace: str, pod: str, wanted: str) -> str:
    """The refusal as `weft observe` shows it, naming the user's object."""

    def look() -> str:
        result = weft("observe", "--verdict", "DROPPED", "--from-pod", f"{namespace}/{pod}", "--last", "20", "-o", "json")
        for line in result.stdout.splitlines():
            summary = str(json.loads(line)["flow"].get("Summary", ""))
            if wanted in summary:
                return summary
        return ""

    return awaited(f"a flow of {namespace}/{pod} that names {wanted}", look)


def intruder_denied(_: Path) -> str:
    """An identity that no policy allows."""
    result = inside("shop/intruder", *WEB)
    require(result.returncode != 0 and MARKER.decode() not in result.stdout, "the intruder got the page")
    return flow_of_refusal("shop", "intruder", "AuthorizationPolicy shop/web-for-browser")


def plain_refused(_: Path) -> str:
    """A client outside of the mesh, under STRICT."""
    result = inside("legacy/plain", *WEB)
    require(result.returncode != 0 and MARKER.decode() not in result.stdout, "plain text got through STRICT")
    return flow_of_refusal("legacy", "plain", "PeerAuthentication shop/strict")


@contextmanager
def subscription() -> Any:
    """A live connection from cache-worker to Redis that has been answered; ends when either side closes it."""
    script = "exec 3<>/dev/tcp/redis.data/6379 && printf 'SUBSCRIBE news\\r\\n' >&3 && cat <&3"
    command = [WEFT, "lab", "exec", "data/cache-worker", "--", "bash", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        try:
            require(process.stdout is not None and b"*3" in process.stdout.readline(), "Redis did not answer SUBSCRIBE")
            yield process
        finally:
            process.kill()


def policy_edited(folder: Path) -> str:
    """A policy that forbids a live connection closes it; what was before comes back with the old one."""
    ping = ("timeout", "5", "redis-cli", "-h", "redis.data", "PING")
    edited = folder / "stores-for-worker.yaml"
    edited.write_text(REDIS_CLOSED)
    try:
        with subscription() as live:
            started = time.monotonic()
            done(weft("apply", "-f", str(edited)))
            try:
                live.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise Unexpected("the live connection outlived the policy that forbids it") from None
            closed_ms = (time.monotonic() - started) * 1000
        result = inside("data/cache-worker", *ping)
        require("PONG" not in result.stdout, "a new connection passed the edited policy")
    finally:
        done(weft("apply", "-f", str(DEMO / "4-policies.yaml")))
    awaited("Redis to answer again", lambda: "PONG" if "PONG" in inside("data/cache-worker", *ping).stdout else "")
    return f"live connection closed {closed_ms:.0f} ms after `weft apply` was typed; restored: PONG"


def certificates(_: Path) -> str:
    """Both sides, with their identities and when they expire."""
    table = done(weft("certificates"))
    for identity in ("spiffe://cluster.local/ns/shop/sa/browser", "spiffe://cluster.local/ns/shop/sa/web"):
        require(identity in table, f"no certificate of {identity}")
    return "\n     ".join(("browser's and web's, each on its own node", *table.rstrip().splitlines()))


STEPS: list[tuple[str, Callable[[Path], str]]] = [
    ("the same pods without the mesh: the link is readable", without_mesh),
    ("bring up two nodes with the mesh", bring_up),
    ("curl, redis-cli and psql across nodes", programs_work),
    ("the link carries TLS only", encrypted),
    ("nginx sees the client pod's own address", source_address),
    ("an intruder's identity is denied", intruder_denied),
    ("plain text is refused under STRICT", plain_refused),
    ("an edited policy closes a live connection", policy_edited),
    ("certificates of both sides", certificates),
]


def run(folder: Path) -> list[Step]:
    """Every step in turn; the first that fails ends it, because the next ones stand on it."""
    steps: list[Step] = []
    for number, (title, act) in enumerate(STEPS, 1):
        print(f"[{number}/{len(STEPS)}] {title} ...", end="", flush=True)
        started = time.monotonic()
        try:
            seen, good = act(folder), True
        except (Unexpected, subprocess.TimeoutExpired, OSError) as error:
            seen, good = str(error), False
        took_s = time.monotonic() - started
        print(f" {'ok' if good else 'FAILED'} ({took_s:.1f} s)\n     {seen}", flush=True)
        steps.append(Step(title, seen, took_s, good))
        if not good:
            break
    return steps


def show(steps: list[Step]) -> None:
    """The final table, and where to go from here."""
    width = max(len(step.title) for step in steps)
    print(f"\n{'STEP':<{width}}  RESULT  SECONDS")
    for step in steps:
        print(f"{step.title:<{width}}  {'ok' if step.good else 'FAILED':<6}  {step.took_s:7.1f}")
    if all(step.good for step in steps):
        name = os.path.relpath(WEFT)
        print(f"""
The lab is up. Try next:
  {name} observe -f
  {name} status
  {name} lab exec shop/browser -- curl -s http://web.shop/
Remove it with:
  {name} lab down""")
    else:
        print(f"\nWhat is up stays up, to look at: {os.path.relpath(WEFT)} lab status; {os.path.relpath(WEFT)} lab logs")


def main() -> None:
    """Run the demo; exit code 1 when a step failed, 130 when it was interrupted."""
    try:
        with tempfile.TemporaryDirectory(prefix="weft-demo-") as folder:
            steps = run(Path(folder))
    except KeyboardInterrupt:
        name = os.path.relpath(WEFT)
        print(f"\ninterrupted; what is up stays up: {name} lab status; remove it with: {name} lab down", flush=True)
        raise SystemExit(130) from None
    show(steps)
    raise SystemExit(0 if all(step.good for step in steps) else 1)


if __name__ == "__main__":
    main()
