"""`weft observe`: the flows of all nodes, the way users of the hubble command know them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any

import click
from google.protobuf import json_format

from cli.dial import chosen_nodes, report_failures
from cli.failure import Failure, warn
from cli.flow_line import ansi_paint, columns, compact, no_paint
from cli.flow_merge import HOLD_S, newest, oldest
from cli.flow_query import DEFAULT_LAST, SIDED, Filters, Window, request
from cli.flow_source import follow, history
from cli.moments import parse_moment
from cli.nodes import node_option
from cli.output import in_colour, plain_table
from mesh.flow_filter import select
from mesh.proto.flow_pb2 import Verdict
from mesh.proto.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from wire.places import NodePlaces, Places

_HELP = {
    "pod": "[NAMESPACE/]POD, by prefix; without a namespace: default, or that of --namespace.",
    "namespace": "Namespace.",
    "ip": "Address or CIDR.",
    "port": "Port.",
    "label": "Label selector, e.g. app=web.",
    "service": "[NAMESPACE/]SERVICE, as for --pod.",
}
_SHORT = {"namespace": "-n", "label": "-l"}
_FORMATS = ["compact", "dict", "table", "json"]


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    try:
        return parse_moment(value, datetime.now(UTC)) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _count(context: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    """Hubble's reading of 0: as if the option were not there."""
    return value or None


def _port(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= 65535):
            raise click.BadParameter(f"{value[:40]!r} is no port: 0 to 65535")
    return values


def _sided_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --X, --from-X and --to-X for every kind."""
    for kind in reversed(SIDED):
        check = _port if kind == "port" else None
        for prefix, words in (("to-", "of the destination"), ("from-", "of the source"), ("", "of either end")):
            names = [f"--{prefix}{kind}", *([_SHORT[kind]] if kind in _SHORT and not prefix else [])]
            text = _HELP[kind] if not prefix else f"The same, {words}."
            command = click.option(*names, multiple=True, callback=check, help=text, metavar=kind.upper())(command)
    return command


@click.command(
    epilog="""
\b
Examples:
  weft observe                                     the last 20 flows of all nodes
  weft observe -f --verdict DROPPED                refusals as they happen
  weft observe --pod demo/web --port 80 --last 50  what reached or left port 80 of web
  weft observe --since 5m -o json                  five minutes of flows as JSON lines
"""
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new flows until interrupted.")
@click.option(
    "--last",
    type=click.IntRange(0),
    callback=_count,
    help=f"Only the newest N flows; with --follow, of each node.  [default: {DEFAULT_LAST}]",
    metavar="N",
)
@click.option("--first", type=click.IntRange(0), callback=_count, help="Only the oldest N flows.", metavar="N")
@click.option("--all", "everything", is_flag=True, help="Everything that the nodes keep.")
@click.option("--since", callback=_moment, help="Flows since then: 5m (ago) or a date, UTC.", metavar="TIME")
@click.option("--until", callback=_moment, help="Flows until then.", metavar="TIME")
@_sided_options
@click.option(
    "--verdict", "verdicts", multiple=True, help="Verdict, e.g. DROPPED (also what lines call DENIED).",
    type=click.Choice(list(Verdict.keys()), case_sensitive=False), metavar="VERDICT",
)  # fmt: skip
@click.option("--protocol", "protocols", multiple=True, help="Protocol, e.g. tcp.", metavar="NAME")
@click.option("--encrypted/--unencrypted", default=None, help="Only flows over mutual TLS, or only plain ones.")
@click.option("-o", "--output", type=click.Choice(_FORMATS), default="compact", show_default=True, help="Form of a flow.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option(
    "--print-node-name/--no-print-node-name", default=None, help="Name the node of each flow.  [default: with several]"
)
@node_option
def observe(**options: Any) -> None:
    """Show flows: who connected to whom, and what became of it.

    Options of one kind repeated mean any of them; of different kinds, all of them. A refused flow names the policy that
    refused it, or says that a default did.
    """
    sided = {kind: (options.pop(kind), options.pop(f"from_{kind}"), options.pop(f"to_{kind}")) for kind in SIDED}
    try:
        window = Window(*(options[name] for name in ("last", "first", "everything", "since", "until", "follow")))
        either, source, destination = ({kind: values[side] for kind, values in sided.items()} for side in range(3))
        filters = Filters(either, source, destination, options["verdicts"], options["protocols"], options["encrypted"])
        asked = request(window, filters)
        select(asked.whitelist, [])  # what no node could answer is said once, and here
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if window.follow and options["output"] == "table":
        raise click.UsageError("-o table needs all flows before it prints the first: leave --follow out")
    nodes = chosen_nodes(Places.from_environment(), options["node"])
    named = options["print_node_name"]
    printer = _printer(options["output"], options["color"], len(nodes) > 1 if named is None else named)
    if window.follow:
        with suppress(KeyboardInterrupt):  # the way to end it
            asyncio.run(_show_live(nodes, asked, printer))
    else:
        asyncio.run(_show_stored(nodes, asked, window, printer))


Printer = Callable[[list[GetFlowsResponse]], None]


def _printer(form: str, color: str, node: bool) -> Printer:
    paint = ansi_paint if color == "always" or (color == "auto" and in_colour()) else no_paint

    def one(response: GetFlowsResponse) -> str:
        if form == "json":
            return str(json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None))
        if form == "compact":
            return compact(response, paint, node)
        cells = {heading: text for heading, text in columns(response, paint).items() if node or heading != "NODE"}
        return "\n".join(f"{heading:>11}: {text}" for heading, text in cells.items())

    separator = "------------\n" if form == "dict" else ""
    between = chain([""], repeat(separator))

    def table(responses: list[GetFlowsResponse]) -> None:
        rows = [list(columns(response).items()) for response in responses]
        kept = [[(heading, text) for heading, text in row if node or heading != "NODE"] for row in rows]
        if kept:
            click.echo(plain_table([heading for heading, _ in kept[0]], [[text for _, text in row] for row in kept]), nl=False)

    def lines(responses: list[GetFlowsResponse]) -> None:
        for response in responses:
            click.echo(next(between) + one(response), color=True)

    return table if form == "table" else lines


async def _show_stored(nodes: list[NodePlaces], asked: GetFlowsRequest, window: Window, printer: Printer) -> None:
    answers = await history(nodes, asked)
    found = newest((answer.value or [] for answer in answers), window.newest)
    printer(found if window.first is None else oldest(found, window.first))
    if not report_failures(answers):
        raise click.exceptions.Exit(1)
    if not found and asked.whitelist:
        warn("no flow that is kept fits; pods are NAMESPACE/POD, as weft workloads lists them, without a namespace of default")


async def _show_live(nodes: list[NodePlaces], asked: GetFlowsRequest, printer: Printer) -> None:
    def report(failure: Failure) -> None:
        warn(f"{failure.message}; asking again until it is back")

    await follow(nodes, asked, HOLD_S, lambda response: printer([response]), report)
