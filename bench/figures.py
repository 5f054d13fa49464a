"""From samples to figures: medians over rounds, and ratios inside rounds. Pure.

Contenders are measured one after the other within each round, so that a noisy machine disturbs all alike; what is compared is
the ratio within a round, and what is reported is the median of those ratios with their range. Absolute values of a shared
machine mean little.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

Sample = Mapping[str, float]
"""Figures of one measurement, by name."""
Round = Mapping[tuple[str, str], Sample]
"""(contender, load) -> sample."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over all rounds that have it."""

    median: float
    low: float
    high: float
    rounds: int
    likely: tuple[float, float]
    """Where the median of ever more rounds lies, by 95 %: a bootstrap interval. One round says nothing of that."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Raises: statistics.StatisticsError for no value."""
        return cls(median(values), min(values), max(values), len(values), _likely(values))

    @property
    def spread(self) -> str:
        """Behind the median: in ( ) where it is likely to be, in [ ] the rounds' range."""
        return "({:.2f} to {:.2f}) [{:.2f} to {:.2f}]".format(*self.likely, self.low, self.high)


_DRAWS = 1000


def _likely(values: Sequence[float]) -> tuple[float, float]:
    draw, ranked = Random(0), sorted(values)
    medians = sorted(median(draw.choices(ranked, k=len(ranked))) for _ in range(_DRAWS))
    return medians[_DRAWS // 40], medians[-1 - _DRAWS // 40]


_PART = "cpu_s of "


def with_cost(sample: Sample, parts: Mapping[str, float], machine_cpu_s: float, aside: Container[str] = ()) -> dict[str, float]:
    """A sample with what it cost: the CPU seconds of each kind of process, their sum, and the whole machine's beside them.

    `proxy_` is the sum without the kinds `aside`. Without processes (the bare network) there is only the machine's.
    """
    costs = {"machine_cpu_s": machine_cpu_s}
    if parts:
        costs["cpu_s"] = sum(parts.values())
        costs["proxy_cpu_s"] = sum(seconds for name, seconds in parts.items() if name not in aside)
    if "bytes" in sample:
        units = {f"{name}_per_gb": seconds * 1e9 / sample["bytes"] for name, seconds in costs.items() if sample["bytes"]}
    else:
        count = sample.get("count", 0)
        units = {f"{name.removesuffix('s')}us_per_request": seconds * 1e6 / count for name, seconds in costs.items() if count}
    return {**sample, **costs, **units, **{_PART + name: seconds for name, seconds in parts.items()}}


def part_costs(rounds: Iterable[Round], contender: str, load: str, figure: str) -> dict[str, Figure]:
    """A cost figure, divided among the kinds of processes that caused it."""
    found: dict[str, list[float]] = {}
    for one in rounds:
        sample = one.get((contender, load), {})
        for name, seconds in sample.items():
            if name.startswith(_PART) and sample.get("cpu_s"):
                found.setdefault(name.removeprefix(_PART), []).append(seconds / sample["cpu_s"] * sample[figure])
    return {name: Figure.of(costs) for name, costs in found.items()}


def values(rounds: Iterable[Round], contender: str, load: str, figure: str) -> list[float]:
    """A figure's values, one per round that has it."""
    found = (one.get((contender, load), {}).get(figure) for one in rounds)
    return [value for value in found if value is not None]


def ratio(rounds: Iterable[Round], contender: str, reference: str, load: str, figure: str) -> Figure | None:
    """Contender to reference, round by round; None where no round has both."""
    found = []
    for one in rounds:
        mine, theirs = (one.get((name, load), {}).get(figure) for name in (contender, reference))
        if mine is not None and theirs:
            found.append(mine / theirs)
    return Figure.of(found) if found else None


def headroom(rounds: Sequence[Round], direct: str, contenders: Iterable[str], load: str = "rr64") -> float | None:
    """How many times faster the bare network is than the fastest contender: below 3 the load generator is in the way."""
    best = [ratio(rounds, direct, contender, load, "per_s") for contender in contenders]
    found = [one.median for one in best if one]
    return min(found) if found else None


def client_busy(rounds: Iterable[Round], contender: str, load: str = "rr64") -> float | None:
    """The share of one CPU that the load generator's client used: near 1 it was the limit, not the contender."""
    shares = [
        sample["client_cpu_s"] / sample["seconds"]
        for one in rounds
        if (sample := one.get((contender, load), {})).get("client_cpu_s") and sample.get("seconds")
    ]
    return median(shares) if shares else None


def short(value: float) -> str:
    """A number with three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
