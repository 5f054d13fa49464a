"""`weft lab`: throw-away meshes on one machine, through the lab's own client."""

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.failure import Failure, warn
from cli.group import Group
from cli.manifests import read_manifests, refuse_nothing
from cli.nodes import node_option
from cli.output import NOTHING, output_option, print_json, print_table, printable
from lab.client import Lab, LabError, ManifestError, problem_line
from lab.layout import SOURCE_ROOT
from mesh.manifests import parse

_DEMO = SOURCE_ROOT / "lab" / "demo"
_MAX_LINE = 1 << 20
"""Characters of a log's line, after which it is cut: a program may never end one."""


@contextmanager
def _reported() -> Iterator[None]:
    """Turn what the lab cannot do into lines and exit code 1."""
    try:
        yield
    except ManifestError as error:
        for problem in error.problems:
            warn(problem_line(problem))
        warn("nothing was changed: mend the above and repeat")
        raise click.exceptions.Exit(1) from None
    except PermissionError as error:
        raise Failure("lab", f"no permission to open {error.filename}", "run as root") from None
    except LabError as error:
        head, *rest = str(error).splitlines() or [""]
        warn(f"lab: {head}")
        for line in rest:
            click.echo(printable(line), err=True)
        raise click.exceptions.Exit(1) from None


@click.group(cls=Group)
def lab() -> None:
    """A throw-away mesh on this machine: nodes and pods out of network namespaces and cgroups."""


@lab.command(
    short_help="Bring up what manifests describe.",
    epilog="""
\b
Examples:
  weft lab up                     the demo: two nodes, three applications
  weft lab up my-topology.yaml    nodes and pods of your own
  weft lab up manifests/          a folder of manifests
  weft lab up --no-mesh           the same without agents and proxies, to compare
""",
)
@click.argument("sources", nargs=-1, metavar="[FILE|DIR]...")
@click.option("--no-mesh", is_flag=True, help="The same nodes and pods without agents and proxies.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds to wait.")
@output_option
def up(sources: tuple[str, ...], no_mesh: bool, timeout_s: float, output: str) -> None:
    """Bring up what manifests describe, and wait until it is ready.

    Repeating it changes nothing; other manifests add to what is up.
    """
    if not sources and not _DEMO.is_dir():
        raise Failure("lab up", f"the demo is not installed: {_DEMO} is missing", "name a file or folder of manifests")
    files = {file.name: file.yaml for file in read_manifests(sources or [str(_DEMO)])}
    found = parse(files)
    refuse_nothing([*found, *found.problems])
    with _reported():
        try:
            status = Lab().up(files, not no_mesh, lambda line: click.echo(printable(line), err=True), timeout_s)
        except KeyboardInterrupt:
            raise LabError("interrupted; weft lab up goes on with it, weft lab down removes it") from None
    _show(status, output)


@lab.command(
    short_help="Remove the lab, whole.",
    epilog="""
\b
Examples:
  weft lab down    also after a crash; nothing outside the lab is touched
""",
)
@output_option
def down(output: str) -> None:
    """Remove the lab: processes, namespaces, cgroups, programs, run and state folders."""
    with _reported():
        try:
            removed = Lab().down(lambda line: click.echo(printable(line), err=True))
        except KeyboardInterrupt:
            raise LabError("interrupted, and a part of the lab is left: weft lab down goes on with it") from None
    if output == "json":
        print_json({"removed": removed})
    else:
        click.echo("the lab is gone" if removed else "no lab was up")


@lab.command(
    short_help="Replace the nodes' proxies, without a gap.",
    epilog="""
\b
Examples:
  weft lab restart             every node's proxy, one after the other
  weft lab restart --node a    that of node a
""",
)
@output_option
@node_option
def restart(output: str, node: tuple[str, ...]) -> None:
    """Start a new proxy beside the running one; when it is ready, the old one drains and ends. Connections do not notice."""
    with _reported():
        client = Lab()
        names = node or tuple(sorted(one["name"] for one in client.status()["nodes"]))
        done = []
        for name in names:
            done.append(client.restart(name))
            if output != "json":
                click.echo("node {node}: process {new} serves after {seconds} s, process {old} drains".format(**done[-1]))
    if output == "json":
        print_json(done)


@lab.command(
    short_help="Show nodes and pods.",
    epilog="""
\b
Examples:
  weft lab status            nodes and pods, and what is not ready
  weft lab status -o json    with processes, namespaces and cgroups
""",
)
@output_option
@node_option
def status(output: str, node: tuple[str, ...]) -> None:
    """Show nodes and pods of the lab; exit code 1 when something is not ready."""
    with _reported():
        document = Lab().status()
    if node:
        known = sorted(one["name"] for one in document["nodes"])
        for name in node:
            if name not in known:
                raise Failure(f"node {name}", "not in this lab", f"known here: {', '.join(known)}")
        document["nodes"] = [one for one in document["nodes"] if one["name"] in node]
        document["pods"] = [one for one in document["pods"] if one["node"] in node]
    _show(document, output)
    for reason in document["unready"]:
        warn(f"not ready: {reason}")
    if document["unready"]:
        raise click.exceptions.Exit(1)


def _show(document: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(document)
        return
    rows = [(one["name"], one["addresses"], one["podCIDRs"], _programs(one)) for one in document["nodes"]]
    print_table(("NODE", "ADDRESSES", "POD RANGES", "PROGRAMS"), rows)
    click.echo()
    print_table(("POD", "NODE", "ADDRESSES", "STATE", "READY", "MESH", "RESTARTS"), [_pod_row(one) for one in document["pods"]])


def _programs(node: dict[str, Any]) -> list[str]:
    """Each by name; what is down, or was and had to be started anew, says so."""
    programs = sorted(node["programs"].items())
    restarts = {name: f" (restarts: {program['restarts']})" for name, program in programs if program.get("restarts")}
    return [f"{name}{'' if program.get('pid') else ' down'}{restarts.get(name, '')}" for name, program in programs]


def _pod_row(pod: dict[str, Any]) -> tuple[object, ...]:
    mesh = "enrolled" if pod["enrolled"] else NOTHING
    return f"{pod['namespace']}/{pod['name']}", pod["node"], pod["addresses"], pod["phase"], pod["ready"], mesh, pod["restarts"]


def _pods(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    with suppress(LabError, OSError):
        names = [f"{one['namespace']}/{one['name']}" for one in Lab().status()["pods"]]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return []


class _Exec(click.Command):
    """Options go before the pod or, in kubectl's order, between it and `--`; what follows is the command's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else []
        ctx.allow_interspersed_args = len(before) > 1 and before[1].startswith("-")
        return super().parse_args(ctx, args)


@lab.command(
    name="exec",
    cls=_Exec,
    short_help="Run a command inside a pod.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""
\b
Examples:
  weft lab exec shop/browser -- curl -s http://web.shop/
  weft lab exec shop/browser -- bash
""",
)
@click.option("-c", "--container", default="", help="Container of the pod, where it has several.")
@click.argument("pod", metavar="NAMESPACE/POD", shell_complete=_pods)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def execute(container: str, pod: str, command: tuple[str, ...]) -> None:
    """Run a command inside a pod: its namespaces, files and cgroup, so that the mesh holds for it.

    The exit code is the command's.
    """
    if pod.count("/") != 1:
        raise click.UsageError(f"{pod!r} is no pod: write NAMESPACE/POD")
    with _reported():
        code = Lab().exec(pod, command[1:] if command[0] == "--" else command, container)
    raise click.exceptions.Exit(code)


@lab.command(
    short_help="Print logs of weft's processes and of pods.",
    epilog="""
\b
Examples:
  weft lab logs                      the last lines of control, agents and proxies
  weft lab logs node-a/ztunnel -f    the access log of a node's proxy, as it grows
  weft lab logs shop/web             what a pod's program prints
  weft lab logs control -o json      one JSON object per line, with its origin
""",
)
@click.argument("target", required=False, metavar="[lab|control|NODE/agent|NODE/ztunnel|NAMESPACE/POD]")
@click.option("-c", "--container", default="", help="Container of the pod, where it has several.")
@click.option("-n", "--lines", type=click.IntRange(0), help="Lines from the end.  [default: 100; 10 of each without a target]")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written.")
@output_option
@node_option
def logs(target: str | None, container: str, lines: int | None, follow: bool, output: str, node: tuple[str, ...]) -> None:
    """Print logs of the lab's processes and pods; without a target those of weft's own, each line with its origin."""
    if target and node:
        raise click.UsageError(f"--node is about all logs of a node: leave it out, or {target}")
    client = Lab()
    with _reported(), suppress(KeyboardInterrupt):
        if target and output == "table":
            for piece in client.logs(target, container, 100 if lines is None else lines, follow):
                click.echo(piece, nl=False)
            return
        if target:
            for line in _lines(client.logs(target, container, 100 if lines is None else lines, follow)):
                _show_line(target, line, output)
            return
        targets = [name for one in node for name in _targets(client, one)] if node else client.log_targets()
        _many(client, targets, 10 if lines is None else lines, follow, output)


def _targets(client: Lab, node: str) -> list[str]:
    found = client.log_targets(node)
    if not found:
        raise Failure(f"node {node}", "no log of it is here", "see: weft lab status")
    return found


def _many(client: Lab, targets: list[str], lines: int, follow: bool, output: str) -> None:
    """Several logs, each line with its origin; one after the other, then with `follow` as they grow."""
    followed = [(target, client.logs(target, "", lines, follow)) for target in targets]
    for target, pieces in followed:
        for line in _lines([next(pieces)]):
            _show_line(target, line, output)
    if not any(client.log_path(target).exists() for target in targets):
        raise Failure("logs", "there are none", "start a lab with: weft lab up")
    if not follow:
        return
    grown: queue.Queue[tuple[str, str]] = queue.Queue(1000)
    for one in followed:
        threading.Thread(target=_watch, args=(*one, grown.put), daemon=True).start()
    while True:
        _show_line(*grown.get(), output)


def _watch(target: str, pieces: Iterable[str], put: Callable[[tuple[str, str]], None]) -> None:
    for line in _lines(pieces):
        put((target, line))


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Whole lines out of pieces that end anywhere; what comes after the last line end is a line too."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
        if len(rest) > _MAX_LINE:
            yield rest
            rest = ""
    if rest:
        yield rest


def _show_line(target: str, line: str, output: str) -> None:
    click.echo(json.dumps({"origin": target, "line": line}) if output == "json" else f"{target}: {line}")
