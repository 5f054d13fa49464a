"""Which certificate to fetch when: the life of this node's workload certificates, without clock or network of its own.

An identity is *wanted* (from the first request, or `adopt`, until `forget`), and then always in one of these:

| state | leaves it by |
|---|---|
| due at a time, nothing to show | `start` once due, most urgent first, at most 8 at a time |
| fetching | `fetched` -> available, due again around half of its life; `failed` -> due again after a backoff |
| available and due | as due; a failed refresh leaves the old one in use until it expires; `withdrawn` -> failed and due |
| failed and due | requests meanwhile fail at once with the last reason: who waits longer helps nobody |

Times are unix seconds, because certificates speak of them.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from mesh.identity import Identity

MAX_FETCHES = 8
"""Istio's ztunnel's bound: a node's start must not bury the CA."""
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 150.0
JITTER = 0.2
REFRESH_JITTER = 0.05
"""Share of a life by which refreshes spread around its half: a CA that was away is not asked for everything in one second."""
MAX_PREFETCHES = 256
"""Istio's ztunnel's bound of what waits for a fetch that no connection asked for."""
_SHORTEST_REFRESH_S = 1.0
_LONGEST_WAIT_S = MAX_BACKOFF_S * (1 + JITTER)
"""Of who has no certificate, or could not renew it."""


class Priority(IntEnum):
    """How urgently a certificate is wanted."""

    BACKGROUND = 0
    """A refresh."""
    WARMUP = 1
    """A workload appeared on this node."""
    REALTIME = 2
    """A connection waits."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key and the roots that came with it; validity in unix seconds."""

    identity: Identity
    chain_pem: bytes
    """Leaf first, then intermediates."""
    key_pem: bytes = field(repr=False)
    roots_pem: bytes
    not_before: float
    not_after: float
    federated: tuple[tuple[str, bytes], ...] = ()
    """Other trust domains with their roots, PEM, which are believed about these domains alone."""

    def refresh_at(self, now: float, jitter: float = 0.0) -> float:
        """When to fetch its successor: around half of its life, or at half of what is left where that has passed."""
        half = self.not_before + (self.not_after - self.not_before) * (0.5 + REFRESH_JITTER * jitter)
        return half if half > now else now + max((self.not_after - now) / 2, _SHORTEST_REFRESH_S)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate is there."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no certificate for an identity, and who waits for it must hear why."""

    identity: Identity
    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An identity left this node."""

    identity: Identity


Event = Issued | Failed | Forgotten


@dataclass(slots=True)
class _Entry:
    priority: Priority
    due_at: float
    certificate: Certificate | None = None
    error: str = ""
    """Why the last attempt failed; empty when it did not."""
    backoff_s: float = FIRST_BACKOFF_S

    def is_due(self, now: float) -> bool:
        # Where the clock was set back what was meant for a moment from then is years away.
        waits_for_another_attempt = self.certificate is None or self.error
        return bool(self.due_at <= now or (waits_for_another_attempt and self.due_at > now + _LONGEST_WAIT_S))

    def valid(self, now: float) -> bool:
        return self.certificate is not None and self.certificate.not_after > now


class Certificates:
    """The certificates of one node. Every method takes `now`; those that tell somebody something return events."""

    def __init__(self) -> None:
        self._entries: dict[Identity, _Entry] = {}
        # Apart from the entries: a fetch goes on when its identity is forgotten, and serves it should it come back meanwhile.
        self._fetching: set[Identity] = set()

    def request(self, identity: Identity, priority: Priority, now: float) -> list[Event]:
        """Want an identity's certificate: what is there already is told again, several requests become one fetch."""
        entry = self._entries.get(identity)
        if entry is None:
            self._entries[identity] = _Entry(priority, now)
            return []
        if entry.certificate is not None and entry.valid(now):
            return [Issued(entry.certificate)]
        if entry.error:
            return [Failed(identity, entry.error)]
        entry.priority = max(entry.priority, priority)
        entry.due_at = min(entry.due_at, now)
        return []

    def adopt(self, certificate: Certificate, now: float, jitter: float = 0.0) -> list[Event]:
        """Want an identity that begins with a certificate from before; nothing happens when it is wanted already."""
        if certificate.identity in self._entries or certificate.not_after <= now:
            return []
        self._entries[certificate.identity] = _Entry(Priority.BACKGROUND, certificate.refresh_at(now, jitter), certificate)
        return [Issued(certificate)]

    def forget(self, identity: Identity) -> list[Event]:
        """Drop an identity and its key."""
        return [Forgotten(identity)] if self._entries.pop(identity, None) else []

    def start(self, now: float) -> Identity | None:
        """The identity to fetch now, which counts as being fetched from here on; None: nothing is due, or enough are."""
        if len(self._fetching) >= MAX_FETCHES:
            return None
        due = [(-entry.priority, entry.due_at, identity) for identity, entry in self._waiting() if entry.is_due(now)]
        if not due:
            return None
        identity = min(due)[2]
        self._fetching.add(identity)
        return identity

    def next_due_at(self) -> float | None:
        """When `start` may next have something; None: only after another call."""
        if len(self._fetching) >= MAX_FETCHES:
            return None
        return min((entry.due_at for _, entry in self._waiting()), default=None)

    @property
    def prefetch_room(self) -> int:
        """How many more may be wanted before a connection asks for them."""
        queued = sum(entry.priority is Priority.WARMUP for entry in self._entries.values())
        return max(MAX_PREFETCHES - queued, 0)

    def _waiting(self) -> list[tuple[Identity, _Entry]]:
        return [(identity, entry) for identity, entry in self._entries.items() if identity not in self._fetching]

    def fetched(self, certificate: Certificate, now: float, jitter: float = 0.0) -> list[Event]:
        """A fetch succeeded; `jitter` between -1 and 1 spreads the refreshes."""
        self._fetching.discard(certificate.identity)
        return self.renewed(certificate, now, jitter)

    def renewed(self, certificate: Certificate, now: float, jitter: float = 0.0) -> list[Event]:
        """A certificate came, asked for or not."""
        entry = self._entries.get(certificate.identity)
        if entry is None:
            return []
        known, entry.certificate = entry.certificate, certificate
        entry.priority = Priority.BACKGROUND
        entry.due_at = certificate.refresh_at(now, jitter)
        entry.error = ""
        entry.backoff_s = FIRST_BACKOFF_S
        return [] if certificate == known else [Issued(certificate)]

    def failed(self, identity: Identity, reason: str, now: float, jitter: float) -> list[Event]:
        """A fetch failed; `jitter` between -1 and 1 spreads the nodes' next attempts."""
        self._fetching.discard(identity)
        entry = self._entries.get(identity)
        return self._put_off(identity, entry, reason, now, jitter) if entry else []

    def withdrawn(self, identity: Identity, reason: str, now: float, jitter: float) -> list[Event]:
        """Nobody may have an identity any more, valid as its certificate may be; asked for again as after a failure."""
        entry = self._entries.get(identity)
        if entry is None:
            return []
        entry.certificate = None
        return self._put_off(identity, entry, reason, now, jitter)

    def _put_off(self, identity: Identity, entry: _Entry, reason: str, now: float, jitter: float) -> list[Event]:
        next_at = now + entry.backoff_s * (1 + JITTER * jitter)
        entry.backoff_s = min(entry.backoff_s * 2, MAX_BACKOFF_S)
        entry.priority = Priority.BACKGROUND
        entry.error = reason
        if entry.certificate is not None and entry.valid(now):
            entry.due_at = min(next_at, entry.certificate.not_after)
            return []
        entry.certificate = None
        entry.due_at = next_at
        return [Failed(identity, reason)]

    def identities(self) -> set[Identity]:
        """What is wanted now."""
        return set(self._entries)

    def available(self, now: float) -> list[Certificate]:
        """The certificates that are valid."""
        return [entry.certificate for entry in self._entries.values() if entry.certificate is not None and entry.valid(now)]

    def states(self, now: float) -> list[tuple[Identity, str, Certificate | None]]:
        """Identity, state as the config dump words it, and certificate, in the identities' order."""
        rows: list[tuple[Identity, str, Certificate | None]] = []
        for identity, entry in sorted(self._entries.items()):
            if entry.valid(now):
                rows.append((identity, "Available", entry.certificate))
            else:
                rows.append((identity, f"Unavailable: {entry.error}" if entry.error else "Initializing", None))
        return rows
