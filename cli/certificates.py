"""`weft certificates`: which identities every proxy speaks for, and for how long."""

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime

import click

from cli import dial
from cli.config_dump import config_dump
from cli.dial import chosen_nodes, control_stub, from_nodes, report_failures
from cli.group import Group
from cli.health import certificates as leaf_certificates
from cli.moments import parse_duration, span
from cli.nodes import node_option
from cli.output import output_option, print_json, print_table
from mesh.proto.control_pb2 import RootRotation, RotateRootRequest, StatusRequest, StatusResponse
from wire.places import Places

_MAX_OVERLAP_S = 180 * 86400


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog="""
\b
Examples:
  weft certificates                 all nodes
  weft certificates --node node-a   one proxy
  weft certificates -o json         with times and serial numbers
  weft certificates roots           the root certificates that the mesh trusts now, PEM
  weft certificates rotate-root     replace the root certificate, with an overlap
""",
)
@output_option
@node_option
@click.pass_context
def certificates(context: click.Context, output: str, node: tuple[str, ...]) -> None:
    """List the proxies' certificates: one per identity of the pods that run on a node. Keys are never shown."""
    if context.invoked_subcommand is None:
        _list(output, node)
    for option, given in (("-o", output != "table"), ("--node", node)):
        if context.invoked_subcommand and given:
            raise click.UsageError(f"{option} is about the list of certificates: write it behind {context.invoked_subcommand}")


def _list(output: str, node: tuple[str, ...]) -> None:
    now = datetime.now(UTC)
    answers = asyncio.run(from_nodes(chosen_nodes(Places.from_environment(), node), config_dump))
    found = [(answer.node, one) for answer in answers for one in leaf_certificates(answer.value or {})]
    if output == "json":
        print_json([{"node": name, **asdict(one), **_times(one.not_before, one.not_after)} for name, one in found])
    else:
        headings = ("NODE", "IDENTITY", "STATE", "EXPIRES IN", "NOT AFTER", "SERIAL")
        rows = []
        for name, one in found:
            left = one.left_s(now)
            expires = None if left is None else span(left) if left > 0 else "expired"
            serial = f"{int(one.serial):x}" if one.serial.isascii() and one.serial.isdigit() else one.serial
            moment = f"{one.not_after:%Y-%m-%d %H:%M:%S}Z" if one.not_after else None
            rows.append((name, one.identity, one.state, expires, moment, serial))
        print_table(headings, rows)
    if not report_failures(answers):
        raise click.exceptions.Exit(1)


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    try:
        seconds = parse_duration(value or "0s").total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 <= seconds <= _MAX_OVERLAP_S:
        raise click.BadParameter(f"{value}: write at most {_MAX_OVERLAP_S // 3600}h")
    return int(seconds)


@certificates.command(
    "rotate-root",
    epilog="""
\b
Examples:
  weft certificates rotate-root                 as long as any certificate is valid between the steps
  weft certificates rotate-root --overlap 48h   more of it
""",
)
@click.option("--overlap", callback=_seconds, help="from step to step; default and least: as long as certificates live")
@output_option
def rotate_root(overlap: int, output: str) -> None:
    """Replace the root certificate. No connection is dropped: every node trusts the new one before it signs."""

    async def call() -> RootRotation:
        async with control_stub(Places.from_environment()) as stub:
            answer: RootRotation = await stub.RotateRoot(RotateRootRequest(overlap_s=overlap), timeout=dial.TIMEOUT_S)
            return answer

    answer = asyncio.run(call())
    until = datetime.fromtimestamp(answer.until_unix_s, UTC)
    if output == "json":
        print_json({"phase": answer.phase, "until": until.isoformat()})
        return
    click.echo(f"a new root is announced; it signs from {until:%Y-%m-%d %H:%M:%S}Z on (weft status)")


@certificates.command(
    epilog="""
\b
Examples:
  weft certificates roots > root-cert.pem    for a node outside a lab, whose agent and proxy trust it
"""
)
@output_option
def roots(output: str) -> None:
    """Print the root certificates that the mesh trusts now: two while one replaces the other."""

    async def call() -> RootRotation:
        async with control_stub(Places.from_environment()) as stub:
            answer: StatusResponse = await stub.Status(StatusRequest(), timeout=dial.TIMEOUT_S)
            return answer.rotation

    rotation = asyncio.run(call())
    if output == "json":
        print_json({"phase": rotation.phase, "roots": rotation.bundle_pem})
    else:
        click.echo(rotation.bundle_pem, nl=False)


def _times(*moments: datetime | None) -> dict[str, str | None]:
    texts = [moment.isoformat() if moment else None for moment in moments]
    return dict(zip(("not_before", "not_after"), texts, strict=True))
