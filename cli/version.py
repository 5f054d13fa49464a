"""`weft version`: which version every part runs."""

import asyncio
import platform
import ssl

import click

from cli.config_dump import config_dump
from cli.dial import Answer, agent_status, from_nodes
from cli.failure import Failure
from cli.output import output_option, print_json, printable
from cli.status import control_report
from mesh.version import VERSION
from wire.places import NodePlaces, Places


@click.command(
    epilog="""
\b
Examples:
  weft version            this command, and the parts that run here
  weft version --client   this command alone
"""
)
@click.option("--client", is_flag=True, help="Ask no running part.")
@output_option
def version(client: bool, output: str) -> None:
    """Show the versions of this command and of all parts that run; parts that do not answer are left out."""
    versions = {
        "weft": VERSION,
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "kernel": platform.release(),
    }
    if not client:
        versions |= asyncio.run(_running(Places.from_environment()))
    if output == "json":
        print_json(versions)
    else:
        for part, text in versions.items():
            click.echo(printable(f"{part}: {text}"))


async def _running(places: Places) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        found["control"] = (await control_report(places)).version
    except Failure:
        pass  # no control plane runs here: nothing to say about it
    nodes = [places.node(name) for name in places.nodes()]
    for part, ask in (("agent", _agent_version), ("proxy", _proxy_version)):
        answers: list[Answer[str]] = await from_nodes(nodes, ask)
        found |= {f"{part} {answer.node}": answer.value for answer in answers if answer.value}
    return found


async def _agent_version(node: NodePlaces) -> str:
    return str((await agent_status(node)).version)


async def _proxy_version(node: NodePlaces) -> str:
    dump = await config_dump(node)
    return str((dump.get("version") or {}).get("version", "")).removeprefix("weft-")
