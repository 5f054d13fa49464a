"""What an operator may set of how the data workers behave; the defaults are Istio's ztunnel's where it has the setting."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ztunnel.frames import DEFAULT_WINDOW, LARGEST_FRAME_BYTES, MAX_WINDOW, MIN_MAX_FRAME_BYTES, SIZES, Sizes
from ztunnel.variables import duration, integer, truth

HANDSHAKE_S = 10.0
"""Nobody sets how long a handshake may take."""
_LONGEST_S = 86_400.0
_UNANSWERED_S = 60.0
_LONGEST_TCP_S = 32_767
"""MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL of the kernel."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Times in seconds."""

    connect_timeout_s: float = 10.0
    """CONNECT_TIMEOUT: of a TCP connection to an endpoint, a gateway or an application."""
    workload_timeout_s: float = 5.0
    """WORKLOAD_TIMEOUT: how long a connection waits until the control plane tells of its pod, or of what it asked for."""
    pool_idle_s: float = 300.0
    """POOL_UNUSED_RELEASE_TIMEOUT: after it a tunnel that nobody uses is given back."""
    pool_streams: int = 100
    """POOL_MAX_STREAMS_PER_CONNECTION: how many connections share a tunnel; a peer may allow fewer."""
    keepalive_s: int = 180
    """KEEPALIVE_TIME: how long a connection is silent before the kernel asks whether its peer is there; 0: it never asks."""
    keepalive_interval_s: int = 180
    """KEEPALIVE_INTERVAL: between two such questions."""
    keepalive_probes: int = 9
    """KEEPALIVE_RETRIES: how many may go unanswered."""
    user_timeout_s: int = 0
    """USER_TIMEOUT_ENABLED: how long bytes may go unacknowledged; as long as keep-alive would take. 0: as the kernel thinks."""
    endpoint_attempts: int = 3
    """ENDPOINT_ATTEMPTS: how many endpoints of a service one connection is offered to at most; 1: never another one."""
    outlier_failures: int = 5
    """OUTLIER_FAILURES: after so many failures in a row an endpoint is set aside for a while; 0: never."""
    verified_certificates: int = 512
    """WEFT_VERIFIED_CERTIFICATES: how many certificates of peers a worker need not verify when they come again; 0: none."""

    sizes: Sizes = SIZES
    """HTTP2_STREAM_WINDOW_SIZE, HTTP2_CONNECTION_WINDOW_SIZE, HTTP2_FRAME_SIZE: what peers of tunnels may send."""
    questions_per_s: float = 200.0
    """WEFT_QUESTIONS_PER_POD: unknown names that a pod, or a peer, may have the control plane asked for, on demand."""

    def share(self, workers: int) -> "Tuning":
        """One worker's, of what is the node's."""
        return replace(self, questions_per_s=self.questions_per_s / workers)

    @property
    def making_s(self) -> float:
        """How long a connection may be in the making: each attempt with its handshake, and a peer that never answers."""
        return _UNANSWERED_S + self.endpoint_attempts * (self.connect_timeout_s + HANDSHAKE_S)


def read_tuning(environment: Mapping[str, str]) -> Tuning:
    """Read the environment. Raises: ValueError naming the variable, the reason and the mend."""
    default = Tuning()
    return Tuning(
        connect_timeout_s=_seconds("CONNECT_TIMEOUT", environment, default.connect_timeout_s),
        workload_timeout_s=_seconds("WORKLOAD_TIMEOUT", environment, default.workload_timeout_s),
        pool_idle_s=_seconds("POOL_UNUSED_RELEASE_TIMEOUT", environment, default.pool_idle_s),
        pool_streams=integer("POOL_MAX_STREAMS_PER_CONNECTION", environment, default.pool_streams, 1, 65_535),
        **_keepalive(environment, default),
        endpoint_attempts=integer("ENDPOINT_ATTEMPTS", environment, default.endpoint_attempts, 1, 10),
        questions_per_s=float(integer("WEFT_QUESTIONS_PER_POD", environment, int(default.questions_per_s), 1, 1_000_000)),
        outlier_failures=integer("OUTLIER_FAILURES", environment, default.outlier_failures, 0, 1000),
        verified_certificates=integer("WEFT_VERIFIED_CERTIFICATES", environment, default.verified_certificates, 0, 65_536),
        sizes=_sizes(environment),
    )


def _sizes(environment: Mapping[str, str]) -> Sizes:
    # A peer may fill the protocol's own windows before it hears of ours: smaller ones would end honest connections.
    stream = integer("HTTP2_STREAM_WINDOW_SIZE", environment, SIZES.stream_window, DEFAULT_WINDOW, MAX_WINDOW)
    connection = integer("HTTP2_CONNECTION_WINDOW_SIZE", environment, SIZES.connection_window, DEFAULT_WINDOW, MAX_WINDOW)
    frame = integer("HTTP2_FRAME_SIZE", environment, SIZES.frame, MIN_MAX_FRAME_BYTES, LARGEST_FRAME_BYTES)
    return Sizes(stream, connection, frame)


def _keepalive(environment: Mapping[str, str], default: Tuning) -> dict[str, int]:
    idle_s = max(1, round(_seconds("KEEPALIVE_TIME", environment, default.keepalive_s)))
    interval_s = max(1, round(_seconds("KEEPALIVE_INTERVAL", environment, default.keepalive_interval_s)))
    probes = integer("KEEPALIVE_RETRIES", environment, default.keepalive_probes, 1, 127)
    wanted = truth("KEEPALIVE_ENABLED", environment, True)
    impatient = truth("USER_TIMEOUT_ENABLED", environment, False)
    return {
        "keepalive_s": min(idle_s, _LONGEST_TCP_S) if wanted else 0,
        "keepalive_interval_s": min(interval_s, _LONGEST_TCP_S),
        "keepalive_probes": probes,
        "user_timeout_s": idle_s + interval_s * probes if impatient else 0,
    }


def _seconds(name: str, environment: Mapping[str, str], default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    found = duration(name, text)
    if not 0 < found <= _LONGEST_S:
        raise ValueError(f"{name}={text!r}: more than 0 and at most 24h")
    return found
