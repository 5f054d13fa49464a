"""What pods asked their DNS for, counted by the kind of question: what a worker adds up, and the supervisor sums."""

from bisect import bisect_left
from dataclasses import dataclass, field

QueryLabels = tuple[str, str, str, str]
"""Type and protocol in lower case, the client's canonical name and revision."""
BUCKETS_S = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
"""How long nameservers take, in Istio's steps."""


@dataclass(slots=True)
class QueryCounts:
    """What one kind of question came to."""

    requests: int = 0
    upstream_requests: int = 0
    upstream_failures: int = 0
    """No server answered, or none with a record of what was asked for."""
    seconds: float = 0.0
    """Sum of what nameservers took."""
    durations: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    """Answers within each of BUCKETS_S but not the one before; the last are slower than all."""

    def took(self, seconds: float) -> None:
        """A nameserver answered, or none did in the end."""
        self.seconds += seconds
        self.durations[bisect_left(BUCKETS_S, seconds)] += 1

    def add(self, other: "QueryCounts") -> None:
        """Sum up."""
        self.requests += other.requests
        self.upstream_requests += other.upstream_requests
        self.upstream_failures += other.upstream_failures
        self.seconds += other.seconds
        self.durations = [ours + theirs for ours, theirs in zip(self.durations, other.durations, strict=True)]
