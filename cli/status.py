"""`weft status`: per node what runs, who is enrolled, certificates and maps; and at the end what is wrong."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from cli import dial
from cli.config_dump import config_dump
from cli.dial import Answer, agent_status, chosen_nodes, control_stub, from_nodes, proxy_readiness
from cli.failure import Failure, Forbidden
from cli.health import (
    Certificate,
    Finding,
    agent_findings,
    certificate_findings,
    certificates,
    control_findings,
    proxy_findings,
)
from cli.mend import has_control
from cli.moments import span
from cli.nodes import node_option
from cli.output import NOTHING, output_option, print_json, print_table, printable, styled
from lab.client import Lab, LabError
from mesh.proto.agent_pb2 import EnrolledPod
from mesh.proto.agent_pb2 import StatusResponse as AgentStatus
from mesh.proto.control_pb2 import StatusRequest
from mesh.proto.control_pb2 import StatusResponse as ControlStatus
from wire.places import NodePlaces, Places


@dataclass(slots=True)
class NodeReport:
    """What one node's parts say; None where a part did not answer, then `findings` says why."""

    name: str
    agent: AgentStatus | None = None
    agent_state: str = Failure.state
    proxy_state: str = Failure.state
    """Of who did not answer."""
    readiness: str | None = None
    """Empty: the proxy is ready; else what it waits for."""
    certificates: list[Certificate] = field(default_factory=list)
    connections: int = 0
    findings: list[Finding] = field(default_factory=list)


async def node_report(node: NodePlaces, now: datetime) -> NodeReport:
    """Ask a node's agent and proxy; whoever does not answer becomes a finding."""
    report = NodeReport(node.name)
    try:
        report.agent = await agent_status(node)
        report.findings += agent_findings(node.name, report.agent)
    except Failure as failure:
        report.agent_state = failure.state
        report.findings.append(Finding(node.name, failure.message))
    try:
        report.readiness = await proxy_readiness(node)
        if report.readiness:
            report.findings.append(Finding(node.name, f"the proxy is not ready, waiting for: {report.readiness}"))
        dump = await config_dump(node)
        report.findings += proxy_findings(node.name, dump, report.agent)
        report.certificates = certificates(dump)
        report.connections = _open_connections(dump)
        report.findings += certificate_findings(node.name, report.certificates, now)
    except Failure as failure:
        report.proxy_state = failure.state
        report.findings.append(Finding(node.name, failure.message))
    return report


def _open_connections(dump: dict[str, Any]) -> int:
    ends = [(state.get("connections") or {}) for state in (dump.get("workloadState") or {}).values()]
    return sum(len(end.get(direction) or []) for end in ends for direction in ("inbound", "outbound"))


async def control_report(places: Places) -> ControlStatus:
    """The control plane's own status. Raises: Failure."""
    async with control_stub(places) as stub:
        status: ControlStatus = await stub.Status(StatusRequest(), timeout=dial.TIMEOUT_S)
        return status


@click.command(
    epilog="""
\b
Examples:
  weft status               everything, exit code 1 if something is wrong
  weft status --node a      one node
  weft status -o json       for programs
"""
)
@output_option
@node_option
def status(output: str, node: tuple[str, ...]) -> None:
    """Show what runs on every node, who is enrolled, certificates and maps, and what is wrong.

    Exit code 1 when something is wrong; warnings alone are no reason.
    """
    places = Places.from_environment()
    nodes = chosen_nodes(places, node)
    now = datetime.now(UTC)
    if _is_without_mesh():
        if output == "json":
            print_json(_as_json(None, [], [], now) | {"mesh": False})
        else:
            click.echo("this lab runs without a mesh, as asked with --no-mesh: put it on with: weft lab up")
        return
    control, reports = asyncio.run(_collect(places, nodes, now))
    findings = _findings(control, reports, now)
    if output == "json":
        print_json(_as_json(control.value, reports, findings, now))
    else:
        _print(control, reports, findings, now)
    if any(not finding.warning for finding in findings):
        raise click.exceptions.Exit(1)


def _is_without_mesh() -> bool:
    """Whether a lab is up whose user asked for no mesh: nothing is missing then."""
    lab = Lab()
    try:
        return lab.layout.socket.exists() and lab.status(dial.TIMEOUT_S)["mesh"] is False
    except LabError:
        return False  # a node without a lab's daemon, or a daemon in trouble: its nodes are asked all the same


async def _collect(places: Places, nodes: list[NodePlaces], now: datetime) -> tuple[Answer[ControlStatus], list[NodeReport]]:
    async def control() -> Answer[ControlStatus]:
        if not has_control(places):
            return Answer("control", None)
        try:
            return Answer("control", await control_report(places))
        except Failure as failure:
            return Answer("control", None, failure)

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(control())
        answers = group.create_task(from_nodes(nodes, lambda one: node_report(one, now)))
    return asked.result(), [answer.value for answer in answers.result() if answer.value]


def _findings(control: Answer[ControlStatus], reports: list[NodeReport], now: datetime) -> list[Finding]:
    found = [finding for report in reports for finding in report.findings]
    if control.value is not None:
        return [*control_findings(control.value, now), *found]
    return [Finding("control", control.failure.message), *found] if control.failure else found


def _rotation(control: ControlStatus, now: datetime) -> str:
    step = {"announced": "its successor signs", "signing": "the one before it is retired"}.get(control.rotation.phase)
    return f"; {step} in {span(control.rotation.until_unix_s - now.timestamp())}" if step else ""


def _control_line(control: Answer[ControlStatus], reports: list[NodeReport], now: datetime) -> str:
    status = control.value
    if status is not None:
        return (
            f"running {status.version}, {status.objects} objects, {status.workloads} workloads, "
            f"{status.services} services, {status.policies} policies, "
            f"root certificate for {span(status.root_expires_unix_s - now.timestamp())}{_rotation(status, now)}"
            f"{f', {status.refused_calls} calls refused' if status.refused_calls else ''}"
        )
    if control.failure is not None:
        return control.failure.state if isinstance(control.failure, Forbidden) else "does not answer"
    asked = sorted({report.agent.control.address for report in reports if report.agent and report.agent.control.address})
    return f"not on this machine{', but at ' if asked else ''}{', '.join(asked)}"


def _print(control: Answer[ControlStatus], reports: list[NodeReport], findings: list[Finding], now: datetime) -> None:
    click.echo(printable(f"control: {_control_line(control, reports, now)}") + "\n")
    headings = ("NODE", "AGENT", "PROXY", "CONTROL", "ENROLLED", "CERTIFICATES", "FIRST EXPIRES", "CONNECTIONS")
    print_table(headings, [_node_row(report, now) for report in reports])
    pods = [(report.name, pod) for report in reports if report.agent for pod in report.agent.pods]
    if pods:
        click.echo()
        of_pods = ("NODE", "POD", "SERVICE ACCOUNT", "ADDRESSES", "STATE", "CAPTURED V4", "CAPTURED V6")
        print_table(of_pods, [_pod_row(name, pod) for name, pod in pods])
    excluded = [row for report in reports if report.agent for row in _excluded_rows(report.name, report.agent)]
    if excluded:
        click.echo()
        print_table(("NODE", "POD", "EXCLUDED FROM CAPTURE"), excluded)
    maps = [(report.name, fill) for report in reports if report.agent for fill in report.agent.maps]
    if maps:
        click.echo()
        rows = [(name, fill.name, fill.used, fill.capacity, _share(fill.used, fill.capacity)) for name, fill in maps]
        print_table(("NODE", "MAP", "USED", "CAPACITY", "FILL"), rows)
    click.echo()
    for finding in findings:
        mark = "warning" if finding.warning else "wrong"
        line = printable(f"{mark}: {finding.where}: {finding.text}")
        click.echo(styled(line, fg="yellow" if finding.warning else "red"))
    if not findings:
        click.echo(styled("nothing is wrong", fg="green"))


def _share(used: int, capacity: int) -> str:
    return f"{used * 100 / capacity:.1f} %" if capacity else NOTHING


def _node_row(report: NodeReport, now: datetime) -> tuple[object, ...]:
    agent, left = report.agent, [one.left_s(now) for one in report.certificates]
    first = min((seconds for seconds in left if seconds is not None), default=None)
    enrolled = sum(pod.state == "enrolled" for pod in agent.pods) if agent else 0
    available = sum(one.state.startswith("Available") for one in report.certificates)
    answers = report.readiness is not None
    proxy = ("starting" if report.readiness else "ready") if answers else report.proxy_state
    return (
        report.name,
        f"running {agent.version}".strip() if agent else report.agent_state,
        proxy if not agent or agent.proxy.connected or not answers else f"{proxy}, not connected",
        ("connected" if agent.control.connected else "away") if agent else None,
        f"{enrolled}/{len(agent.pods)}" if agent else None,
        f"{available}/{len(report.certificates)}" if answers else None,
        span(first) if first is not None else None,
        report.connections if answers else None,
    )


def _pod_row(node: str, pod: EnrolledPod) -> tuple[object, ...]:
    name = f"{pod.namespace}/{pod.name}"
    return node, name, pod.service_account, list(pod.addresses), pod.state, pod.captured_v4, pod.captured_v6


def _excluded_rows(node: str, agent: AgentStatus) -> list[tuple[object, ...]]:
    rows = [(node, "(all)", list(agent.excluded))] if agent.excluded else []
    return [*rows, *((node, f"{pod.namespace}/{pod.name}", list(pod.excluded)) for pod in agent.pods if pod.excluded)]


def _as_json(
    control: ControlStatus | None, reports: list[NodeReport], findings: list[Finding], now: datetime
) -> dict[str, Any]:
    return {
        "ok": not any(not finding.warning for finding in findings),
        "mesh": True,
        "control": _message(control),
        "nodes": [
            {
                "node": report.name,
                "agent": _message(report.agent),
                "proxy": None if report.readiness is None else {"ready": not report.readiness, "waitsFor": report.readiness},
                "certificates": [
                    {"identity": one.identity, "state": one.state, "expiresInSeconds": one.left_s(now)}
                    for one in report.certificates
                ],
                "connections": report.connections,
            }
            for report in reports
        ],
        "findings": [{"where": one.where, "text": one.text, "warning": one.warning} for one in findings],
    }


def _message(message: Any) -> Any:
    return None if message is None else MessageToDict(message, always_print_fields_with_no_presence=True)
