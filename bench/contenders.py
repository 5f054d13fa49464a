"""What is measured against what: how a client reaches the server, and whose CPU time that costs."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import accounts
from bench.figures import Sample, with_cost
from bench.stage import LoadClient, LoadError
from bench.targets import SIZE_BYTES
from bench.topology import SOURCES

DIRECT, NEAR_DIRECT = "direct", "direct same node"
WEFT, NEAR_WEFT = "weft", "weft same node"
ENVOY_TLS, ENVOY_HBONE = "Envoy mTLS (E1)", "Envoy HBONE (E2)"
ZTUNNEL = "ztunnel (Z)"
ACROSS = (DIRECT, ENVOY_TLS, ENVOY_HBONE, ZTUNNEL, WEFT)
"""Across nodes."""
NEAR = (NEAR_DIRECT, NEAR_WEFT)
PROXIED = (WEFT, ENVOY_TLS, ENVOY_HBONE, ZTUNNEL)
JUDGED = (WEFT, ENVOY_HBONE, ZTUNNEL)
"""weft, and those to which it is compared by targets."""
ASIDE = frozenset(("agent",))
"""Processes of weft that are no proxy: of Istio, the likes of istio-cni."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way from a client to a server."""

    name: str
    client: LoadClient
    host: str
    port: int
    pids: Callable[[], list[int]]
    """The processes between the two, asked anew for every measurement."""

    def await_answer(self, seconds: float = 20.0) -> None:
        """Wait until the server answers this way: proxies that were just started listen a moment later. Raises: LoadError."""
        self.client.order("until", host=self.host, port=self.port, refused=False, seconds=seconds)
        self._answer("until")
        self._answer("until")

    def _answer(self, load: str) -> Sample:
        try:
            return self.client.answer()
        except LoadError as error:
            raise LoadError(f"{self.name}, {load}: {error}") from error

    def measure(self, load: str, **details: Any) -> Sample:
        """Carry out one load and account for it. Raises: LoadError."""
        pids = self.pids()  # looking for them takes weft longer than others: nothing is under way yet
        if load != "round_trips":
            before, machine = _cpu_s(pids), accounts.machine_cpu_s()
        self.client.order(load, host=self.host, port=self.port, **details)
        if load == "round_trips":
            self._answer(load)  # it is warm: opening the connections is not charged to requests
            before, machine = _cpu_s(pids), accounts.machine_cpu_s()
        found = self._answer(load)
        after = _cpu_s([pid for pid, _ in before])
        parts: dict[str, float] = {}
        for (pid, name), seconds in after.items():
            parts[name] = parts.get(name, 0.0) + seconds - before[pid, name]
        return with_cost(found, parts, accounts.machine_cpu_s() - machine, ASIDE)


def _cpu_s(pids: Iterable[int]) -> dict[tuple[int, str], float]:
    """CPU seconds so far, by process and what it is."""
    return {(pid, accounts.command_of(pid)): accounts.cpu_s([pid]) for pid in pids}


@dataclass(frozen=True, slots=True)
class Load:
    """One thing to measure: its key in the results, and the order to the load generator."""

    key: str
    order: str
    details: dict[str, Any]
    near: bool = False
    """Measured on one node too."""
    times: int = 1
    """How often a round has it for those who are judged."""


def loads(quick: bool) -> tuple[Load, ...]:
    """What every contender is put through in every round: p99 of one connection swings most, and has the most time."""
    seconds, size = (0.3, 32 << 20) if quick else (1.0, 256 << 20)
    return (
        *(
            Load(f"rr1_{key}", "round_trips", {"connections": 1, "size": size_bytes, "seconds": seconds}, key == "64", 3)
            for key, size_bytes in SIZE_BYTES.items()
        ),
        *(
            Load(f"rr{many}", "round_trips", {"connections": many, "size": 1 << 10, "seconds": seconds}, many == 64, 2)
            for many in (16, 64)
        ),
        Load("crr", "exchanges", {"seconds": seconds}, True, 2),
        *(
            Load(f"{key}{many}", order, {"bytes": size, "connections": many}, many == 1, 2)
            for key, order in (("up", "upload"), ("down", "download"))
            for many in (1, 4)
        ),
    )


def fresh(quick: bool) -> Load:
    """Each connection from an address that no proxy has seen: for all of them that is a peer without a pooled connection.

    Measured after everything else, because the tunnels that it leaves behind stay open until their idle timeout.
    """
    return Load("fresh", "exchanges", {"seconds": 0.3 if quick else 1.0, "sources": SOURCES}, times=2)


def takes_part(one: Contender, load: Load, turn: int) -> bool:
    """Whether a contender is measured at this turn of a round."""
    return one.name in JUDGED if turn else one.name not in NEAR or load.near


def in_turn(found: Sequence[Contender], seed: str) -> list[Contender]:
    """A new order each time, alike in every run: nobody is always measured after the same one."""
    return random.Random(seed).sample(found, len(found))
