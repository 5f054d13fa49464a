"""`weft connections`: the connections that are open now, as the proxies carry them."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import click

from cli.config_dump import config_dump, open_connections
from cli.dial import chosen_nodes, from_nodes, report_failures
from cli.failure import Failure, warn
from cli.moments import span
from cli.nodes import node_option
from cli.output import output_option, print_json, print_table
from wire.places import NodePlaces, Places

Row = tuple[object, ...]
_HEADINGS = ("NODE", "DIRECTION", "SOURCE", "DESTINATION", "SERVICE", "PROTOCOL", "PEER", "POLICY", "SENT", "RECEIVED", "AGE")
_UNITS = ("B", "KB", "MB", "GB", "TB")


async def _open_connections(node: NodePlaces) -> list[dict[str, Any]]:
    """What the node's proxy has open; of a foreign proxy what its config dump tells."""
    try:
        return await open_connections(node)
    except Failure as failure:
        if "HTTP 404" not in failure.message:
            raise
    return list(_of_dump(await config_dump(node)))


def _of_dump(dump: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for uid, state in (dump.get("workloadState") or {}).items():
        info = state.get("info") or {}
        local = f"//Pod/{info.get('namespace')}/{info.get('name')}" if info else ""
        for direction, end in (("inbound", "destinationWorkload"), ("outbound", "sourceWorkload")):
            for one in (state.get("connections") or {}).get(direction) or []:
                yield {end: local, **one, "podUid": uid, "direction": direction}


def size(count: int) -> str:
    """A number of bytes for people: `17 B`, `1.4 MB`."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit always fits")


def _pod(uid: str | None) -> str:
    """`namespace/name` of a workload's uid, `CLUSTER//Pod/NAMESPACE/NAME`."""
    return uid.partition("//Pod/")[2] or uid if uid else ""


def row(node: str, one: dict[str, Any], now: float) -> Row:
    """A connection's cells. Pods by name where they are known, else addresses; sizes from the local pod's viewpoint."""
    inbound = one.get("direction") == "inbound"
    source, destination = _pod(one.get("sourceWorkload")), _pod(one.get("destinationWorkload"))
    sent, received = one.get("bytesSent"), one.get("bytesReceived")
    port = str(one.get("actualDst") or "").rpartition(":")[2]
    opened = one.get("openedUnixNs")
    target = f"{destination}:{port}" if destination else one.get("actualDst")
    return (
        node,
        one.get("direction"),
        f"{source} ({one.get('src')})" if source else one.get("src"),
        f"{one['hop']} {target}" if one.get("hop") else target,
        str(one.get("destinationService") or "").partition("/")[2],
        one.get("protocol"),
        one.get("sourceIdentity" if inbound else "destinationIdentity"),
        one.get("policy"),
        size(sent) if sent is not None else None,
        size(received) if received is not None else None,
        span(now - opened / 1e9) if opened else None,
    )


def _concerns(one: dict[str, Any], pod: str | None, direction: str | None) -> bool:
    ends = (_pod(one.get("sourceWorkload")), _pod(one.get("destinationWorkload")))
    return (direction in (None, one.get("direction"))) and (pod is None or any(end.startswith(pod) for end in ends))


@click.command(
    epilog="""
\b
Examples:
  weft connections                       everything that is open, oldest first
  weft connections --pod shop/web        of pods whose name begins so
  weft connections --direction inbound -o json
"""
)
@click.option("--pod", metavar="NAMESPACE/POD", help="Only of this pod, by prefix.")
@click.option("--direction", type=click.Choice(["inbound", "outbound"]), help="Only this direction.")
@output_option
@node_option
def connections(pod: str | None, direction: str | None, output: str, node: tuple[str, ...]) -> None:
    """List the open connections of enrolled pods, as the proxies at each end carry them.

    A connection between nodes is listed at both ends: outbound where it begins, inbound where it ends. PEER is the identity
    that the other end proved; POLICY the one that allowed it.
    """
    if pod is not None and "/" not in pod:
        raise click.UsageError(f"{pod!r} is no pod: write NAMESPACE/POD, or NAMESPACE/ for all of one")
    answers = asyncio.run(from_nodes(chosen_nodes(Places.from_environment(), node), _open_connections))
    found = [(answer.node, one) for answer in answers for one in answer.value or [] if _concerns(one, pod, direction)]
    found.sort(key=lambda entry: (entry[1].get("openedUnixNs") or 0, entry[0]))
    if output == "json":
        print_json([{"node": name, **one} for name, one in found])
    else:
        now = time.time()
        print_table(_HEADINGS, [row(name, one, now) for name, one in found])
    if not report_failures(answers):
        raise click.exceptions.Exit(1)
    if pod is not None and not found:
        warn(f"no open connection is of a pod {pod}...; weft workloads lists pods, weft observe what has ended")
