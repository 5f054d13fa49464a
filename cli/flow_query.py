"""What `weft observe` asks a node for: options turned into one GetFlowsRequest. Pure.

Options of one kind repeated are OR-ed, different kinds AND-ed. An option without a side (`--pod`, `--port`, ...) holds when
either end of a flow fits, each option for itself: `--pod client --port 80` finds the client's connections to port 80. The
Observer's filters know only sides, so every such option doubles the list of filters (source or destination). A name without its
namespace is of that of its side's option, else of `--namespace`, else `default`.

Where the Observer counts from the oldest flow (`since` with a number) or not at all (`until`), the command asks for all and
counts itself: `--last N` is always the newest N of what was asked for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product

from mesh.proto.flow_pb2 import FlowFilter, Verdict
from mesh.proto.observer_pb2 import GetFlowsRequest

DEFAULT_LAST = 20
SIDED = ("pod", "namespace", "ip", "port", "label", "service")
"""Options that exist as --X, --from-X and --to-X."""
_FIELDS = {"pod": "pod", "namespace": "pod", "ip": "ip", "port": "port", "label": "label", "service": "service"}


@dataclass(frozen=True, slots=True)
class Window:
    """Which flows by count and time; `last` and `first` None: not asked for."""

    last: int | None = None
    first: int | None = None
    everything: bool = False
    since: datetime | None = None
    until: datetime | None = None
    follow: bool = False

    def __post_init__(self) -> None:
        if self.first is not None and (self.last is not None or self.everything or self.follow):
            raise ValueError("--first goes with neither --last, --all nor --follow")
        if self.last is not None and self.everything:
            raise ValueError("--last and --all contradict each other")
        if self.until is not None and self.follow:
            raise ValueError("--until and --follow contradict each other: leave one out")

    @property
    def newest(self) -> int | None:
        """How many of the newest flows to show, None for all: what is left to count when the answers are there."""
        if self.last is not None:
            return self.last
        unbounded = self.everything or self.follow or self.first is not None or self.since or self.until
        return None if unbounded else DEFAULT_LAST


@dataclass(frozen=True, slots=True)
class Filters:
    """Which flows by content; the sided ones by option name without its side."""

    either: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    destination: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verdicts: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    encrypted: bool | None = None


def request(window: Window, filters: Filters) -> GetFlowsRequest:
    """Build the request that every selected node gets."""
    asked = GetFlowsRequest(follow=window.follow, first=window.first is not None, whitelist=whitelist(filters))
    counted_here = window.since is not None or window.until is not None
    if window.first is not None and window.until is None:
        asked.number = window.first
    elif window.newest is not None and not counted_here:
        asked.number = window.newest
    if window.since is not None:
        asked.since.FromDatetime(window.since)
    if window.until is not None:
        asked.until.FromDatetime(window.until)
    return asked


def whitelist(filters: Filters) -> list[FlowFilter]:
    """The filters of which any may match; empty: everything matches."""
    either = merged(filters.either)
    around = filters.either.get("namespace", ())
    source, destination = merged(filters.source, around), merged(filters.destination, around)
    found = []
    for sides in product(("source", "destination"), repeat=len(either)):
        one = FlowFilter(verdict=[Verdict.Value(name.upper()) for name in filters.verdicts], protocol=filters.protocols)
        if filters.encrypted is not None:
            one.encrypted.append(filters.encrypted)
        for side, (kind, values) in zip(sides, either.items(), strict=True):
            getattr(one, f"{side}_{kind}").extend(values)
        if _narrow(one, "source", source) and _narrow(one, "destination", destination):
            found.append(one)
    if not found:
        raise ValueError("the options name two different values for the same end of a connection")
    return [] if found == [FlowFilter()] else found


def _narrow(one: FlowFilter, side: str, wanted: Mapping[str, tuple[str, ...]]) -> bool:
    """Add one side's own values; False where an either-side option already asks that end for something else."""
    for kind, values in wanted.items():
        there = getattr(one, f"{side}_{kind}")
        kept = [both for first in there for second in values if (both := _both(kind, first, second))] if there else list(values)
        if not kept:
            return False
        del there[:]
        there.extend(kept)
    return True


def _both(kind: str, first: str, second: str) -> str | None:
    """What asks for both values at once: the longer of two pod prefixes, else only the same value."""
    shorter, longer = sorted((first, second), key=len)
    return longer if longer == shorter or (kind == "pod" and longer.startswith(shorter)) else None


def merged(values: Mapping[str, tuple[str, ...]], around: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Bring option names to the Observer's: namespaces become pods of that namespace, and are those of pods and services
    without one; where there are none, those `around` are.

    Raises: ValueError for a pod that names another namespace than the namespace option, and for what cannot be one.
    """
    found = {_FIELDS[kind]: texts for kind, texts in values.items() if texts and kind not in ("pod", "namespace")}
    for service in found.get("service", ()):
        if service.count("/") > 1:
            raise ValueError(f"{service!r} is no service: write NAMESPACE/SERVICE")
    namespaces = values.get("namespace", ())
    for namespace in namespaces:
        if not namespace or "/" in namespace:
            raise ValueError(f"{namespace!r} is no namespace")
    pods = tuple(_in_namespaces(values.get("pod", ()), namespaces, around))
    if (namespaces or around) and "service" in found:
        found["service"] = tuple(_qualified(found["service"], namespaces or around))
    return ({"pod": pods} if pods else {}) | found


def _qualified(services: Iterable[str], namespaces: Iterable[str]) -> Iterable[str]:
    for service in services:
        yield from (service,) if "/" in service else (f"{namespace}/{service}" for namespace in namespaces)


def _in_namespaces(pods: tuple[str, ...], namespaces: tuple[str, ...], around: tuple[str, ...]) -> Iterable[str]:
    if not pods:
        yield from (f"{namespace}/" for namespace in namespaces)
    for pod in pods:
        own, slash, rest = pod.partition("/")
        if "/" in rest:
            raise ValueError(f"{pod!r} is no pod: write NAMESPACE/POD")
        if not slash:
            yield from (f"{namespace}/{pod}" for namespace in namespaces or around or ("default",))
        elif namespaces and own not in namespaces:
            raise ValueError(f"pod {pod} is not in namespace {' or '.join(namespaces)}")
        else:
            yield pod
