"""Addresses of workloads that have only a hostname: asked of the proxy's own nameservers, remembered for as long as those say.

Source: facts of Istio's ztunnel, section 5.2 (random choice, the wanted family first, a cache of 4096 names).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from random import choice

from mesh.workload import Address, Workload
from ztunnel.dns_counts import Counts
from ztunnel.dns_message import AAAA, NOERROR, NXDOMAIN, A, DNSError
from ztunnel.dns_response import Response, addresses_in, question_for
from ztunnel.dns_upstream import Origin, Upstream

CACHED_NAMES = 4096
MAX_QUESTIONS = 256
"""Different ones under way at a time, of the 1024 of the worker: forwarding for pods and this leave each other room."""
LONGEST_TTL_S, SHORTEST_TTL_S = 86_400.0, 1.0
NOTHING_TTL_S = 5.0
"""How long a name that does not exist, or has no address of a family, is not asked for again."""
_FAMILIES = {4: A, 6: AAAA}

Done = Callable[[Address | None], None]


@dataclass(slots=True)
class _Waiter:
    wanted: tuple[int, ...]
    """IP versions that are still to be asked for, the best first."""
    done: Done


class Resolver:
    """One per worker. Equal questions are asked once; who waits is named, so that it can be forgotten."""

    def __init__(self, upstream: Upstream, origin: Origin, counts: Counts) -> None:
        self._counts = counts
        self._upstream = upstream
        self._origin = origin
        self._known: dict[tuple[str, int], tuple[float, tuple[Address, ...]]] = {}
        self._waiting: dict[tuple[str, int], dict[object, _Waiter]] = {}
        self._waking: dict[object, _Waiter] = {}
        self.refused = 0
        """Names that were not asked for because too much was under way."""

    def __len__(self) -> int:
        return len(self._waiting)

    def resolve(self, hostname: str, prefer_version: int, who: object, done: Done, source: Workload | None = None) -> None:
        """Call `done` with one address, drawn at random, of the preferred IP version if there is one; None when there is none.

        It is called before this returns where the answer is known. `who` waits for one answer at a time. `source` is whose
        connection it is, for the metric.
        """
        self._counts.on_demand(hostname, source.uid if source else "")
        name = hostname.rstrip(".").lower()
        try:
            literal = ip_address(name)
        except ValueError:
            self._look(name, who, _Waiter((4, 6) if prefer_version == 4 else (6, 4), done))
        else:
            done(_plain(literal))

    def forget_waiter(self, who: object) -> None:
        """Who waited is gone; a question that is under way is answered into the cache."""
        for waiters in (*self._waiting.values(), self._waking):
            waiters.pop(who, None)

    def _look(self, name: str, who: object, waiter: _Waiter) -> None:
        """Answer from what is known, as far as that goes, and ask for the rest."""
        now = self._upstream.loop.now
        while waiter.wanted:
            key = (name, waiter.wanted[0])
            until, addresses = self._known.get(key, (0.0, ()))
            if until <= now:
                self._ask(key, who, waiter)
                return
            if addresses:
                waiter.done(choice(addresses))
                return
            waiter.wanted = waiter.wanted[1:]
        waiter.done(None)

    def _ask(self, key: tuple[str, int], who: object, waiter: _Waiter) -> None:
        waiters = self._waiting.get(key)
        if waiters is not None:
            waiters[who] = waiter
            return
        name, version = key
        try:
            question = question_for(name, _FAMILIES[version])
        except DNSError:
            waiter.done(None)
            return

        def answered(response: Response | None, _reason: str) -> None:
            with suppress(DNSError):  # names in it that cannot be read: as if nobody had answered
                if response is not None and response.code in (NOERROR, NXDOMAIN):
                    packed, ttl_s = addresses_in(response, question)
                    if response.truncated and not packed:
                        raise DNSError("cut short")
                    self._remember(key, tuple(filter(None, map(_plain, map(ip_address, packed)))), ttl_s)
            self._wake(key)

        if len(self._waiting) >= MAX_QUESTIONS or self._upstream.ask(self._origin, question, answered) is None:
            self.refused += 1
            waiter.done(None)
            return
        self._waiting[key] = {who: waiter}

    def _remember(self, key: tuple[str, int], addresses: tuple[Address, ...], ttl_s: float) -> None:
        self._known.pop(key, None)
        if len(self._known) >= CACHED_NAMES:
            del self._known[next(iter(self._known))]
        kept_s = min(max(ttl_s, SHORTEST_TTL_S), LONGEST_TTL_S) if addresses else NOTHING_TTL_S
        self._known[key] = (self._upstream.loop.now + kept_s, addresses)

    def _wake(self, key: tuple[str, int]) -> None:
        now = self._upstream.loop.now
        until, addresses = self._known.get(key, (0.0, ()))
        self._waking = self._waiting.pop(key)
        while self._waking:  # one who is answered may end, or forget, another
            who, waiter = self._waking.popitem()
            if addresses and until > now:
                waiter.done(choice(addresses))
            else:  # of this family there is none, or nobody knows: the other one may be there
                waiter.wanted = waiter.wanted[1:]
                self._look(key[0], who, waiter)


def _plain(address: Address) -> Address | None:
    """As everybody writes it: IPv4 in the dress of IPv6 is IPv4. None for what leads to whoever dials it, whoever that is."""
    if address.version == 6:
        address = address.ipv4_mapped or address
    return None if address.is_unspecified else address
