"""Sources that lost a tunnel by their own fault, and how long their next ones wait before they are greeted. Pure.

A tunnel that is lost costs an offender a handshake, and us as much: who comes back at once with the same would still take a
good part of a core. So its next tunnels are greeted one after the other with a pause between them, which grows with every
offence. Nobody is refused for another's fault behind the same address: a new tunnel is late there, and those that stand go on.

And its allowances begin anew with every tunnel, so that it could spend all of them twice a second for ever: each offence halves
those of the next tunnel of the same identity from the same source. Another identity behind the address keeps its own, as does
the same one elsewhere.

A crowd is slowed down alike, though it has done nothing wrong yet: most of those who come by the hundred at once never end
their handshake, and are shown out before they have cost one.
"""

_FIRST_SHARE, _CROWD_SHARE = 1 / 8, 1 / 50
_LEAST_ALLOWANCE = 1 / 16
CROWD = 32
"""Handshakes of one source in flight: more is a crowd."""
_FORGOTTEN_AFTER_S = 10.0
_MAX_SOURCES = 4096


class _Source:
    """One that offended."""

    __slots__ = ("allowance", "at", "free_at", "pause_s")

    def __init__(self) -> None:
        self.at = self.free_at = self.pause_s = 0.0
        self.allowance = 1.0


class Penance:
    """Those of one worker."""

    def __init__(self, longest_s: float) -> None:
        """`longest_s`: between two greetings of a source that offends again and again; 0: there is no penance."""
        self._longest_s = longest_s
        self._sources: dict[object, _Source] = {}

    def offended(self, source: object, peer: object, now: float) -> None:
        """One more tunnel lost; `peer`: who proved to be behind it, None for nobody."""
        if peer is not None and self._longest_s:
            guilty = self._remember((source, peer), now)
            guilty.allowance = max(_LEAST_ALLOWANCE, guilty.allowance / 2)
        known = self._remember(source, now)
        known.pause_s = min(self._longest_s, max(known.pause_s * 2, self._longest_s * _FIRST_SHARE))
        known.free_at = max(known.free_at, now + known.pause_s)

    def crowds(self, source: object, now: float) -> None:
        """One more comes of a source that has many in flight."""
        known = self._remember(source, now)
        known.pause_s = max(known.pause_s, self._longest_s * _CROWD_SHARE)

    def _remember(self, source: object, now: float) -> _Source:
        known = self._sources.pop(source, None)
        if known is None or now - known.at > _FORGOTTEN_AFTER_S:
            known = _Source()
        if len(self._sources) >= _MAX_SOURCES:
            del self._sources[next(iter(self._sources))]
        known.at = now
        self._sources[source] = known
        return known

    def allowance(self, source: object, peer: object, now: float) -> float:
        """The share of its allowances that a new tunnel of this peer has."""
        known = self._sources.get((source, peer))
        return known.allowance if known is not None and now - known.at <= _FORGOTTEN_AFTER_S else 1.0

    def wait_s(self, source: object, now: float) -> float:
        """How long the tunnel that came just now waits; the next one of its source comes a pause later."""
        known = self._sources.get(source)
        if known is None:
            return 0.0
        if now - known.at > _FORGOTTEN_AFTER_S:
            del self._sources[source]
            return 0.0
        begin = max(now, known.free_at)
        if begin < now + _FORGOTTEN_AFTER_S:  # nobody's handshake waits longer: it has no part in who comes later
            known.free_at = begin + known.pause_s
        return begin - now
