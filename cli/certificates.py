"""`weft certificates`: which identities every proxy speaks for, and for how long."""

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime

import click

from cli.dial import chosen_nodes, from_nodes, proxy_json, report_failures
from cli.health import certificates as leaf_certificates
from cli.moments import span
from cli.nodes import node_option
from cli.output import output_option, print_json, print_table
from wire.places import Places


@click.command(
    epilog="""
\b
Examples:
  weft certificates                 all nodes
  weft certificates --node node-a   one proxy
  weft certificates -o json         with times and serial numbers
"""
)
@output_option
@node_option
def certificates(output: str, node: tuple[str, ...]) -> None:
    """List the proxies' certificates: one per identity of the pods that run on a node. Keys are never shown."""
    now = datetime.now(UTC)
    answers = asyncio.run(
        from_nodes(chosen_nodes(Places.from_environment(), node), lambda one: proxy_json(one, "/config_dump"))
    )
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


def _times(*moments: datetime | None) -> dict[str, str | None]:
    texts = [moment.isoformat() if moment else None for moment in moments]
    return dict(zip(("not_before", "not_after"), texts, strict=True))
