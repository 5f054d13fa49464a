"""Pod reports: what runs where, as those who run it say. Pure: bounds, checks, and the union over reporters."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal

from mesh.workload import Address, Network

MAX_PODS = 50_000
"""Of one report: five times the mesh that weft is measured with."""
MAX_ADDRESSES = 8
MAX_NAME = 253
Phase = Literal["Pending", "Running", "Succeeded", "Failed"]
PHASES: tuple[Phase, ...] = ("Pending", "Running", "Succeeded", "Failed")
Key = tuple[str, str]
"""Namespace and name of a pod."""


@dataclass(frozen=True, slots=True)
class PodReport:
    """What is known of one pod beyond its manifest."""

    namespace: str
    name: str
    reporter: str
    uid: str
    node: str
    addresses: tuple[Address, ...] = ()
    ready: bool = False
    enrolled: bool = False
    phase: str = "Pending"
    service_account: str = field(default="", compare=False)
    """Under which the pod with this uid was first known, as control found it; empty: it was written nowhere yet."""

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def is_over(self) -> bool:
        """Whether the pod has ended for good."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Changes:
    """How a new report differs from what was known."""

    upserts: tuple[PodReport, ...]
    removals: tuple[Key, ...]

    @property
    def keys(self) -> tuple[Key, ...]:
        """The pods that they touch."""
        return *self.removals, *(report.key for report in self.upserts)


@dataclass(slots=True)
class Reports:
    """The newest report of every pod, whoever made it."""

    pods: dict[Key, PodReport] = field(default_factory=dict)
    _owners: dict[Address, set[Key]] = field(default_factory=dict)

    @classmethod
    def of(cls, reports: Iterable[PodReport]) -> "Reports":
        """Take up where a former process ended."""
        made = cls()
        made.apply(Changes(tuple(reports), ()))
        return made

    def changes(self, reporter: str, reports: Sequence[PodReport]) -> Changes:
        """Compare a reporter's whole list with what is known of its pods."""
        told = {report.key for report in reports}
        gone = (key for key, report in self.pods.items() if report.reporter == reporter and key not in told)
        return Changes(tuple(report for report in reports if self.pods.get(report.key) != report), tuple(gone))

    def undoing(self, changes: Changes) -> Changes:
        """What undoes them when they are made."""
        known = tuple(self.pods[key] for key in changes.keys if key in self.pods)
        return Changes(known, tuple(key for key in changes.keys if key not in self.pods))

    def apply(self, changes: Changes) -> None:
        """Make changes current."""
        for key in changes.keys:
            known = self.pods.pop(key, None)
            for address in known.addresses if known else ():
                self._owners[address].discard(key)
                if not self._owners[address]:
                    del self._owners[address]
        for report in changes.upserts:
            self.pods[report.key] = report
            for address in report.addresses:
                self._owners.setdefault(address, set()).add(report.key)

    def misplaced(
        self, reporter: str, reports: Sequence[PodReport], ranges: Mapping[str, Sequence[Network]], sharing: Container[Key]
    ) -> dict[Key, str]:
        """The pods that cannot be where they are said to be, with the reason.

        `ranges` are the pod ranges by node; pods in `sharing` have their node's addresses instead (hostNetwork).
        """
        problems: dict[Key, str] = {}
        owners: dict[Address, Key] = {}
        for report in reports:
            if report.is_over:
                continue
            if report.node not in ranges:
                problems[report.key] = f"node {report.node!r} is no Node object: apply it first"
            elif report.key not in sharing:
                problem = self._address_problem(report, reporter, owners, ranges[report.node])
                if problem:
                    problems[report.key] = problem
        return problems

    def _address_problem(
        self, report: PodReport, reporter: str, owners: dict[Address, Key], ranges: Sequence[Network]
    ) -> str | None:
        for address in report.addresses:
            if not any(address.version == one.version and address in one for one in ranges):
                known = ", ".join(map(str, ranges)) or "none"
                return f"{address} is outside the podCIDRs of node {report.node} ({known})"
            owner = owners.setdefault(address, report.key)
            if owner == report.key:
                owner = self._foreign_owner(address, reporter) or owner
            if owner != report.key:
                return f"{address} is held by pod {'/'.join(owner)}"
        return None

    def _foreign_owner(self, address: Address, reporter: str) -> Key | None:
        """A pod of another reporter that has the address and still runs."""
        for key in self._owners.get(address, ()):
            known = self.pods[key]
            if known.reporter != reporter and not known.is_over:
                return key
        return None


def malformed(reports: Sequence[PodReport]) -> str | None:
    """Why a list is no list of pods at all; None: it is one."""
    if len(reports) > MAX_PODS:
        return f"{len(reports)} pods in one report, at most {MAX_PODS} are read"
    seen: set[Key] = set()
    for report in reports:
        if report.key in seen:
            return f"pod {report.namespace}/{report.name} is reported twice"
        seen.add(report.key)
        names = {"namespace": report.namespace, "name": report.name, "uid": report.uid, "node": report.node}
        for word, text in names.items():
            if not 0 < len(text) <= MAX_NAME:
                return (
                    f"pod {report.namespace}/{report.name}: its {word} has {len(text)} characters, 1 to {MAX_NAME} are allowed"
                )
        if report.phase not in PHASES:
            return f"pod {report.namespace}/{report.name}: phase {report.phase!r} is none of {', '.join(PHASES)}"
        if len(report.addresses) > MAX_ADDRESSES:
            return (
                f"pod {report.namespace}/{report.name}: {len(report.addresses)} addresses, at most {MAX_ADDRESSES} are allowed"
            )
    return None


def read_address(text: str) -> Address:
    """Read a textual address of a report.

    Raises: ValueError for anything that no pod can have.
    """
    address = ip_address(text)
    if address.is_unspecified or address.is_multicast or address.is_loopback or getattr(address, "scope_id", None):
        raise ValueError(f"{text} is no address of a pod")
    return address
