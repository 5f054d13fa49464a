"""Baggage: who a workload is, in one header field, for the other side's telemetry.

What a peer says of itself counts where no lookup by address can tell who it is; nothing is decided by it. The peer has proved
an identity, so its namespace and service account are not taken from its words. And it may say only so many different things
before it is no longer listened to, because every new word is a new series of metrics.
"""

from typing import NamedTuple

from mesh.identity import Identity
from mesh.workload import Locality, Workload

_KINDS = ("deployment", "cronjob", "pod", "job")
MAX_PER_IDENTITY = 64
MAX_BYTES = 2048
"""Of a field that is looked at."""
_MAX_DESCRIPTIONS = 8192
"""Of all identities together: then all are forgotten. One alone cannot reach it."""
_MAX_CHARACTERS = 253
"""Of one value: no name in Kubernetes is longer."""


def baggage_of(workload: Workload) -> bytes:
    """Who a workload is, for the other side's telemetry. Empty values are left out; nothing is percent-encoded."""
    kind = workload.workload_type if workload.workload_type in _KINDS else ""
    pairs = (
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{kind}.name", workload.workload_name if kind else ""),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return ",".join(f"{name}={value}" for name, value in pairs if value).encode("ascii", "replace")


def parse_baggage(value: bytes) -> dict[str, str]:
    """Read a baggage field; empty values count as absent, whatever is not `name=value` is skipped."""
    found: dict[str, str] = {}
    for pair in value.decode("ascii", "replace").split(","):
        name, separator, text = pair.partition("=")
        if separator and text.strip():
            found[name.strip()] = text.strip()
    return found


class Described(NamedTuple):
    """A workload by its own words; hashable, and small enough to travel with a connection's record."""

    identity: Identity
    service: str = ""
    revision: str = ""
    kind: str = ""
    workload: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""

    def as_workload(self, name: str) -> Workload:
        """As the value that names, labels and ends are made of, under a name for logs."""
        return Workload(
            "",
            name,
            self.identity.namespace,
            trust_domain=self.identity.trust_domain,
            service_account=self.identity.service_account,
            canonical_name=self.service,
            canonical_revision=self.revision,
            workload_type=self.kind,
            workload_name=self.workload,
            cluster_id=self.cluster,
            locality=Locality(self.region, self.zone),
        )


class Descriptions:
    """Remembers what was said, by whom."""

    def __init__(self) -> None:
        self._known: dict[Identity, dict[bytes, Described]] = {}
        self._count = 0

    def read(self, identity: Identity, baggage: bytes) -> Described:
        """What a peer says of itself; only its identity when it has said too many different things."""
        said = self._known.get(identity, {})
        described = said.get(baggage)
        if described is not None:
            return described
        if len(said) >= MAX_PER_IDENTITY or len(baggage) > MAX_BYTES:
            return Described(identity)
        if self._count >= _MAX_DESCRIPTIONS:
            self._known.clear()
            self._count = 0
        self._count += 1
        described = self._known.setdefault(identity, {})[baggage] = _parse(identity, baggage)
        return described


def _parse(identity: Identity, baggage: bytes) -> Described:
    words = {name: value[:_MAX_CHARACTERS] for name, value in parse_baggage(baggage).items()}
    kind = next((kind for kind in _KINDS if f"k8s.{kind}.name" in words), "")
    return Described(
        identity,
        words.get("service.name", ""),
        words.get("service.version", ""),
        kind,
        words.get(f"k8s.{kind}.name", ""),
        words.get("k8s.cluster.name", ""),
        words.get("cloud.region", ""),
        words.get("cloud.availability_zone", ""),
    )
