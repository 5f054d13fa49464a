"""What is wrong on a node, from what its parts say. Pure: the time is an argument.

Findings are sentences with the mend. A warning is worth a look; everything else means that something does not work.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cli.moments import span
from mesh.proto.agent_pb2 import StatusResponse as AgentStatus
from mesh.proto.control_pb2 import StatusResponse as ControlStatus

_WARNING = "warning: "
"""How an agent's sentence begins that is one."""
_MIN_LEFT = 0.1
"""A certificate is renewed at half its life; with less than this share left the renewal is in trouble."""
_DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and where: a node's name or `control`."""

    where: str
    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Certificate:
    """A proxy's certificate as the config dump shows it; times None where there is none (yet)."""

    identity: str
    state: str
    serial: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None

    def left_s(self, now: datetime) -> float | None:
        """Seconds until it expires."""
        return (self.not_after - now).total_seconds() if self.not_after else None


def certificates(dump: dict[str, Any]) -> list[Certificate]:
    """The leaf certificates of a proxy's config dump, by identity."""
    return sorted((_certificate(entry) for entry in dump.get("certificates") or []), key=lambda one: one.identity)


def _certificate(entry: dict[str, Any]) -> Certificate:
    chain = entry.get("certChain") or []
    leaf = chain[0] if chain else {}
    return Certificate(
        str(entry.get("identity", "")),
        str(entry.get("state", "")),
        str(leaf.get("serialNumber", "")),
        _moment(leaf.get("validFrom")),
        _moment(leaf.get("expirationTime")),
    )


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None  # another proxy's way to write it
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def agent_findings(node: str, status: AgentStatus) -> Iterator[Finding]:
    """What a node's agent says to be wrong."""
    for problem in status.problems:
        yield Finding(node, problem.removeprefix(_WARNING), warning=problem.startswith(_WARNING))


def proxy_findings(node: str, dump: dict[str, Any], agent: AgentStatus | None) -> Iterator[Finding]:
    """What a proxy's config dump shows to be wrong, unless its agent says the same; another's dump says less."""
    control = dump.get("controlPlane") or {}
    if control.get("error") and not control.get("connected"):
        address = str(control.get("address", ""))
        if agent is None or agent.control.connected or agent.control.address != address:
            text = f"the proxy's control plane {address} is away ({control['error']})"
            yield Finding(node, f"{text}: what it knows of the mesh stays in force")
    if dump.get("silentWorkers"):
        text = f"{dump['silentWorkers']} of the proxy's data workers did not answer"
        yield Finding(node, f"{text}: what they carry is not counted")


def certificate_findings(node: str, found: Iterable[Certificate], now: datetime) -> Iterator[Finding]:
    """Certificates that are missing, expired or not renewed in time; many for one reason are one finding."""
    missing: dict[str, list[str]] = {}
    for one in found:
        left = one.left_s(now)
        if not one.state.startswith("Available"):
            missing.setdefault(one.state.replace(f": {one.identity}: ", ": "), []).append(one.identity)
        elif left is not None and left <= 0:
            yield Finding(node, f"certificate of {one.identity} expired {span(-left)} ago: is the control plane reachable?")
        elif left is not None and one.not_before and one.not_after:
            life = (one.not_after - one.not_before).total_seconds()
            if left < life * _MIN_LEFT:
                text = f"certificate of {one.identity} expires in {span(left)} and was not renewed"
                yield Finding(node, text, warning=True)
    for state, identities in missing.items():
        more = f" and {len(identities) - 1} more" if identities[1:] else ""
        # "Initializing" is where every certificate starts.
        yield Finding(node, f"certificate of {identities[0]}{more}: {state}", warning=state.startswith("Init"))


def control_findings(status: ControlStatus, now: datetime) -> Iterator[Finding]:
    """What the control plane says to be wrong."""
    for problem in status.problems:
        text = ": ".join(part for part in (problem.file, problem.object, problem.field, problem.reason) if part)
        yield Finding("control", text, warning=problem.warning)
    for node in status.nodes:
        if node.last_nack:
            yield Finding("control", f"{node.client or node.node} refused a configuration: {node.last_nack}")
    if status.root_expires_unix_s:
        left = status.root_expires_unix_s - now.timestamp()
        if left < 30 * _DAY_S:
            yield Finding("control", f"the root certificate expires in {span(left)}", warning=left > 0)
