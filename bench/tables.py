"""The tables that people read, in Markdown. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import contenders
from bench.budget import INTERPRETER, Budget
from bench.figures import Figure, Round, part_costs, ratio, short, values
from bench.targets import ROWS, Judged, Row

_SHORT = {
    contenders.DIRECT: "D",
    contenders.ENVOY_TLS: "E1",
    contenders.ENVOY_HBONE: "E2",
    contenders.ZTUNNEL: "Z",
    contenders.WEFT: "U",
}


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with even columns; nothing without lines."""
    rows = list(lines)
    if not rows:
        return ""
    everything = [list(heads), ["---"] * len(heads), *map(list, rows)]
    widths = [max(len(line[index]) for line in everything) for index in range(len(heads))]
    return "".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |\n" for line in everything
    )


def across(rounds: Sequence[Round], in_image: bool) -> str:
    """Weft across nodes beside the others: medians of all, and weft's ratios with their range, target and verdict."""
    present = [name for name in contenders.ACROSS if any((name, "rr1_64") in one for one in rounds)]
    against = [name for name in (contenders.ENVOY_HBONE, contenders.ZTUNNEL) if name in present]
    heads = ["", "unit", *(_SHORT[name] for name in present)]
    for name in against:
        heads += [f"U/{_SHORT[name]}", "target", ""]
    lines = []
    for row in ROWS:
        medians = [_median(rounds, name, row) for name in present]
        if not any(medians):
            continue
        line = [row.name, row.unit, *medians]
        for name in against:
            line += judged(row, ratio(rounds, contenders.WEFT, name, row.load, row.figure), name, in_image)
        lines.append(line)
    return markdown(heads, lines)


def judged(row: Row, found: Figure | None, reference: str, in_image: bool) -> list[str]:
    """A ratio's three cells."""
    target = row.target(reference == contenders.ENVOY_HBONE, in_image)
    word = "at least" if row.more_is_better else "at most"
    shown = f"{found.median:.2f} {found.spread}" if found else ""
    return [shown, "" if target is None else f"{word} {target:g}", row.verdict(found, target)]


def _median(rounds: Sequence[Round], contender: str, row: Row) -> str:
    found = values(rounds, contender, row.load, row.figure)
    return short(Figure.of(found).median) if found else ""


def near(rounds: Sequence[Round]) -> str:
    """The same on one node, through weft's proxy, beside the bare network."""
    lines = []
    for row in ROWS:
        medians = [_median(rounds, name, row) for name in contenders.NEAR]
        if any(medians):
            found = ratio(rounds, contenders.NEAR_WEFT, contenders.NEAR_DIRECT, row.load, row.figure)
            lines.append([row.name, row.unit, *medians, f"{found.median:.2f}" if found else ""])
    return markdown(["on one node", "unit", "D", "U", "U/D"], lines)


def costs(rounds: Sequence[Round]) -> str:
    """Where weft's CPU time goes: the data path (workers), the proxies' supervisors, and the agents that watch."""
    lines = []
    for row in ROWS:
        if not row.figure.startswith("proxy_cpu_"):
            continue
        parts = part_costs(rounds, contenders.WEFT, row.load, row.figure.removeprefix("proxy_"))
        if parts:
            cells = [f"{name} {short(parts[name].median)}" for name in sorted(parts, key=lambda name: -parts[name].median)]
            total = sum(part.median for part in parts.values())
            lines.append([row.name.replace("of the proxies", "of weft"), row.unit, short(total), ", ".join(cells)])
    return markdown(["weft, both nodes", "unit", "all processes", "by process"], lines)


def alone(entries: Sequence[Judged]) -> str:
    """Weft alone."""
    lines = [[one.name, one.measured, one.target, one.verdict] for one in entries]
    return markdown(["weft alone", "measured", "target", ""], lines)


def hot_path(budgets: Sequence[Budget]) -> str:
    """What one of each load costs the proxies of both nodes, and what weft would without its interpreter, to others."""
    bare = {one.load: one.cpu_us - one.parts_us[INTERPRETER] for one in budgets if INTERPRETER in one.parts_us}
    lines = []
    for one in budgets:
        parts = ", ".join(f"{part} {short(micros)}" for part, micros in one.parts_us.items()) or "not sampled"
        lines.append([one.load, _SHORT[one.whose], short(one.cpu_us), parts])
        lines[-1].append(f"{bare[one.load] / one.cpu_us:.2f}" if one.load in bare else "")
    return markdown(["both nodes' proxies, per", "", "CPU us", "of it", "weft without its interpreter, to it"], lines)


def calls(budgets: Sequence[Budget]) -> str:
    """What weft's workers ask of the kernel."""
    lines = []
    for one in budgets:
        if one.whose == contenders.WEFT:
            counts = ", ".join(f"{name} {count:.2f}" for name, count in one.calls.items()) or "not counted"
            moved = f"{short(one.received_bytes)} in, {short(one.sent_bytes)} out" if one.calls else ""
            lines.append([one.load, counts, moved])
    return markdown(["weft's workers, both nodes, per", "system calls", "bytes through them"], lines)


def memory(entries: Sequence[Mapping[str, Any]]) -> str:
    """Proportional memory of each process in each state."""
    states = list(dict.fromkeys(str(entry["state"]) for entry in entries))
    lines = []
    for name in dict.fromkeys(str(entry["process"]) for entry in entries):
        cells = []
        for state in states:
            sizes = [entry["pss_bytes"] / 1e6 for entry in entries if entry["process"] == name and entry["state"] == state]
            cells.append(" + ".join(f"{size:.1f}" for size in sizes))
        lines.append([name, *cells])
    return markdown(["process", *(f"PSS MB, {state}" for state in states)], lines)


def happenings(events: Mapping[str, Figure]) -> str:
    """How long things take that happen now and then."""
    lines = [
        [name, f"{one.median * 1e3:.1f} ms", f"{one.low * 1e3:.1f} to {one.high * 1e3:.1f} ms", str(one.rounds)]
        for name, one in events.items()
    ]
    return markdown(["event", "median", "range", "times"], lines)
