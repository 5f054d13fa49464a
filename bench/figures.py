"""From samples to figures: medians over rounds, ratios inside rounds, and the table that people read. Pure.

Contenders are measured one after the other within each round, so that a noisy machine disturbs all alike; what is compared is
the ratio within a round, and what is reported is the median of those ratios with their range. Absolute values of a shared
machine mean little.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Raises: statistics.StatisticsError for no value."""
        return cls(median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one load: a name, where it is in a sample, its unit, and whether more is better."""

    load: str
    name: str
    figure: str
    unit: str
    more_is_better: bool = False


ROWS = (
    Row("rr1", "round trip, 1 connection, p50", "p50_us", "us"),
    Row("rr1", "round trip, 1 connection, p99", "p99_us", "us"),
    Row("rr32", "round trips, 32 connections", "per_s", "1/s", more_is_better=True),
    Row("rr32", "round trip, 32 connections, p50", "p50_us", "us"),
    Row("rr32", "round trip, 32 connections, p99", "p99_us", "us"),
    Row("rr1", "CPU, 100,000 requests, 1 connection", "cpu_s_per_100k", "s"),
    Row("rr32", "CPU, 100,000 requests, 32 connections", "cpu_s_per_100k", "s"),
    Row("crr", "connect + request", "per_s", "1/s", more_is_better=True),
    Row("crr", "connect + request, p99", "p99_us", "us"),
    Row("crr", "CPU, 100,000 connections", "cpu_s_per_100k", "s"),
    Row("up", "bulk, client to server", "gb_per_s", "GB/s", more_is_better=True),
    Row("down", "bulk, server to client", "gb_per_s", "GB/s", more_is_better=True),
    Row("up", "CPU, client to server", "cpu_s_per_gb", "s/GB"),
    Row("down", "CPU, server to client", "cpu_s_per_gb", "s/GB"),
)


_PART = "cpu_s of "


def with_cost(sample: Sample, parts: Mapping[str, float], machine_cpu_s: float) -> dict[str, float]:
    """A sample with what it cost: the CPU seconds of each kind of process, their sum, and the whole machine's beside them.

    Without processes (the bare network) only the machine's.
    """
    costs = {"machine_cpu_s": machine_cpu_s}
    if parts:
        costs["cpu_s"] = sum(parts.values())
    unit, amount = ("per_gb", sample["bytes"] / 1e9) if "bytes" in sample else ("per_100k", sample.get("count", 0) / 1e5)
    per_unit = {f"{name}_{unit}": cost / amount for name, cost in costs.items()} if amount else {}
    return {**sample, **costs, **per_unit, **{_PART + name: seconds for name, seconds in parts.items()}}


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


def headroom(rounds: Sequence[Round], direct: str, contenders: Iterable[str], load: str = "rr32") -> float | None:
    """How many times faster the bare network is than the fastest contender: below 3 the load generator is in the way."""
    best = [ratio(rounds, direct, contender, load, "per_s") for contender in contenders]
    found = [one.median for one in best if one]
    return min(found) if found else None


def client_busy(rounds: Iterable[Round], contender: str, load: str = "rr32") -> float | None:
    """The share of one CPU that the load generator's client used: near 1 it was the limit, not the contender."""
    shares = [
        sample["client_cpu_s"] / sample["seconds"]
        for one in rounds
        if (sample := one.get((contender, load), {})).get("client_cpu_s") and sample.get("seconds")
    ]
    return median(shares) if shares else None


def table(rounds: Sequence[Round], contenders: Sequence[str], references: Sequence[str]) -> str:
    """Markdown: a line per row and contender with its median and range, and its ratio to every reference."""
    heads = ["", "contender", "median", "range", *(f"/ {reference}" for reference in references)]
    lines = [heads, ["---"] * len(heads)]
    for row in ROWS:
        name = row.name
        for contender in contenders:
            found = values(rounds, contender, row.load, row.figure)
            if not found:
                continue
            figure = Figure.of(found)
            cells = [name, contender, f"{short(figure.median)} {row.unit}", f"{short(figure.low)} to {short(figure.high)}"]
            lines.append([*cells, *(_ratio_cell(rounds, contender, reference, row) for reference in references)])
            name = ""
    widths = [max(len(line[index]) for line in lines) for index in range(len(heads))]
    return "".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |\n" for line in lines)


def _ratio_cell(rounds: Sequence[Round], contender: str, reference: str, row: Row) -> str:
    found = None if contender == reference else ratio(rounds, contender, reference, row.load, row.figure)
    return f"{found.median:.2f} [{found.low:.2f} to {found.high:.2f}]" if found else ""


def short(value: float) -> str:
    """A number with three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
