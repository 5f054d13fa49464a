"""What is measured against what: how a client reaches the server, and whose CPU time that costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import accounts
from bench.figures import Sample, with_cost
from bench.stage import LoadClient

DIRECT, NEAR_DIRECT = "direct", "direct same node"
WEFT, NEAR_WEFT = "weft", "weft same node"
ENVOY_TLS, ENVOY_HBONE = "Envoy mTLS (E1)", "Envoy HBONE (E2)"
ALL = (DIRECT, WEFT, ENVOY_TLS, ENVOY_HBONE, NEAR_DIRECT, NEAR_WEFT)
"""Across nodes unless named otherwise."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way from a client to a server."""

    name: str
    client: LoadClient
    host: str
    port: int
    pids: Callable[[], list[int]]
    """The processes between the two, asked anew for every measurement."""

    def measure(self, load: str, **details: Any) -> Sample:
        """Carry out one load and account for it. Raises: LoadError."""
        self.client.order(load, host=self.host, port=self.port, **details)
        if load == "round_trips":
            self.client.answer()  # it is warm: opening the connections is not charged to requests
        pids = self.pids()
        cpu, machine = accounts.cpu_s(pids), accounts.machine_cpu_s()
        found = self.client.answer()
        return with_cost(found, accounts.cpu_s(pids) - cpu, accounts.machine_cpu_s() - machine)


@dataclass(frozen=True, slots=True)
class Load:
    """One thing to measure: its key in the results, and the order to the load generator."""

    key: str
    order: str
    details: dict[str, float]


def loads(quick: bool) -> tuple[Load, ...]:
    """What every contender is put through in every round."""
    seconds, size = (0.5, 64 << 20) if quick else (1.5, 512 << 20)
    return (
        Load("rr1", "round_trips", {"connections": 1, "seconds": seconds}),
        Load("rr32", "round_trips", {"connections": 32, "seconds": seconds}),
        Load("crr", "exchanges", {"seconds": seconds}),
        Load("up", "upload", {"bytes": size}),
        Load("down", "download", {"bytes": size}),
    )
