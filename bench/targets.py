"""What is asked of weft: every row of the two tables, with its target. Pure."""

from dataclasses import dataclass, replace

from bench.figures import Figure


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one load. Targets are for weft's ratio to a contender; None: none is set."""

    load: str
    name: str
    figure: str
    unit: str
    more_is_better: bool = False
    envoy: float | None = None
    """Against the pair of Envoys that does HBONE."""
    ztunnel: float | None = None
    envoy_in_image: float | None = None
    """Where weft runs from the node image (Debian 13), whose OpenSSL is faster; None: the same as elsewhere."""
    ztunnel_in_image: float | None = None

    def target(self, against_envoy: bool, in_image: bool) -> float | None:
        """The target that holds."""
        usual, image = (self.envoy, self.envoy_in_image) if against_envoy else (self.ztunnel, self.ztunnel_in_image)
        return image if in_image and image is not None else usual

    def verdict(self, ratio: Figure | None, target: float | None) -> str:
        """`met`, `missed`, or why there is none."""
        if target is None:
            return ""
        if ratio is None:
            return "not measured"
        word = "met" if is_met(ratio.median, target, self.more_is_better) else "missed"
        return word + OPEN * is_open(ratio, target, self.more_is_better)


OPEN = "?"
"""Behind a verdict that the next run may turn."""


def is_met(value: float, target: float, more_is_better: bool) -> bool:
    """Compare at the precision that is printed."""
    value = round(value, 2)
    return value >= target if more_is_better else value <= target


def is_open(found: Figure, target: float, more_is_better: bool) -> bool:
    """Whether the median's likely values lie on both sides of a target, or nobody knows them."""
    return found.rounds < 2 or len({is_met(value, target, more_is_better) for value in found.likely}) > 1


SIZES = {"64": "64 B", "1k": "1 KiB", "16k": "16 KiB"}
SIZE_BYTES = {"64": 64, "1k": 1 << 10, "16k": 16 << 10}


def _round_trips() -> tuple[Row, ...]:
    rows = []
    for key, size in SIZES.items():
        name, limit = f"round trip, 1 connection, {size}", 1.0 if key == "16k" else 1.08
        rows.append(Row(f"rr1_{key}", f"{name}, p50", "p50_us", "us", envoy=1.0, ztunnel=limit))
        rows.append(Row(f"rr1_{key}", f"{name}, p99", "p99_us", "us", envoy=1.1, ztunnel=1.1))
    return tuple(rows)


def _bulk() -> tuple[Row, ...]:
    rows = []
    for figure in ("gb_per_s", "proxy_cpu_s_per_gb"):
        for load, way in (("up", "client to server"), ("down", "server to client")):
            for connections, many in ((1, "1 connection"), (4, "4 connections")):
                key = f"{load}{connections}"
                if figure == "gb_per_s":
                    name = f"bulk, {way}, {many}"
                    rows.append(Row(key, name, figure, "GB/s", True, None, 1.0, envoy_in_image=0.95, ztunnel_in_image=1.1))
                else:
                    name = f"CPU of the proxies, {way}, {many}"
                    rows.append(Row(key, name, figure, "s/GB", False, None, None, envoy_in_image=1.0, ztunnel_in_image=1.12))
    return tuple(rows)


CPU = "proxy_cpu_us_per_request"
ROWS = (
    *_round_trips(),
    Row("rr16", "round trips, 16 connections, 1 KiB", "per_s", "1/s", True, 1.05, 1.2),
    Row("rr64", "round trips, 64 connections, 1 KiB", "per_s", "1/s", True, 1.05, 1.2),
    Row("rr64", "round trip, 64 connections, 1 KiB, p50", "p50_us", "us"),
    Row("rr64", "round trip, 64 connections, 1 KiB, p99", "p99_us", "us"),
    Row("rr64", "CPU of the proxies per request, 64 connections", CPU, "us", False, 0.95, 0.7),
    *(
        Row(f"rr1_{key}", f"CPU of the proxies per request, 1 connection, {size}", CPU, "us", False, 1.0, 1.1)
        for key, size in SIZES.items()
    ),
    *_bulk(),
    Row("crr", "connect + request, same peer (pooled)", "per_s", "1/s", True, 1.35, 1.15),
    Row("crr", "connect + request, same peer, p99", "p99_us", "us"),
    Row("crr", "CPU of the proxies per connection, same peer", CPU, "us"),
    Row("fresh", "connect + request, a new peer each time (full handshake)", "per_s", "1/s", True, 1.0, 0.8),
    Row("fresh", "CPU of the proxies per connection, a new peer each time", CPU, "us"),
)
"""weft across nodes, beside the others. `proxies` are node proxies alone: for weft supervisors and workers, no agents."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One figure of weft alone, and what is asked of it."""

    name: str
    measured: str
    target: str
    met: bool | None
    """None: nothing is asked, or it could not be measured."""
    is_open: bool = False

    @classmethod
    def of(cls, name: str, found: Figure, limit: float | None, unit: str) -> "Judged":
        """A figure of several measurements that must not be larger: its median counts."""
        one = cls.at_most(name, found.median, limit, unit)
        return one if limit is None else replace(one, is_open=is_open(found, limit, more_is_better=False))

    @classmethod
    def at_most(cls, name: str, value: float, limit: float | None, unit: str) -> "Judged":
        """A figure that must not be larger."""
        target = "" if limit is None else f"at most {limit:g} {unit}".rstrip()
        shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        met = None if limit is None else is_met(value, limit, more_is_better=False)
        return cls(name, f"{shown} {unit}", target, met)

    def noted(self, note: str) -> "Judged":
        """The same with more about the measurement."""
        return replace(self, measured=f"{self.measured} {note}")

    @property
    def verdict(self) -> str:
        """In a word."""
        return "" if self.met is None else ("met" if self.met else "missed") + OPEN * self.is_open
