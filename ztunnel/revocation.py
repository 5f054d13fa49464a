"""Whose certificates are revoked, as a worker knows it: refused in handshakes, cut off where they are connected.

A chain is looked at whole; a certificate that no list names is good. Where no list is configured nothing here costs anything.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ztunnel.channel import Revocation
from ztunnel.connection_record import Direction, Flag
from ztunnel.der import Malformed, certificate_key
from ztunnel.loop import Loop
from ztunnel.verification import PeerRefused
from ztunnel.walk import ENDINGS_PER_TURN, Walk

Revoked = Mapping[bytes, frozenset[bytes]]
"""Issuer's name (DER) -> serial numbers (content octets)."""
_CERT_REVOKED = 23  # X509_V_ERR_*; becomes alert 44
_PER_TURN = 64
"""Connections that are looked at in one turn of the loop: reading a chain takes tens of microseconds."""


class PeerRevoked(PeerRefused):
    """The peer's chain holds a revoked certificate."""

    flag: Flag = "CERT_REVOKED"
    verify_code = _CERT_REVOKED


class Connected(Protocol):
    """A connection with a peer that proved itself, or is about to."""

    server: bool
    open: bool
    established: bool

    def chain(self) -> list[bytes]:
        """The peer's verified chain, DER, leaf first; empty until it is verified."""

    def end(self, error: str, flag: Flag = "-") -> None:
        """Close it."""


class Revocations:
    """The lists of one worker."""

    def __init__(self, loop: Loop, emit: Callable[[Revocation], None], connected: Iterable[Connected]) -> None:
        """`connected`: all that are, whenever it is gone over."""
        self._emit = emit
        self._revoked: Revoked = {}
        self._rechecking = Walk(loop, lambda: list(connected), self._recheck, _PER_TURN)

    def set(self, revoked: Revoked) -> None:
        """Take in new lists, and look at who is connected: some at once, others in later turns."""
        self._revoked = revoked
        self._rechecking.begin()

    def check(self, server: bool, chain: Sequence[bytes]) -> None:
        """A peer's verified chain, DER, leaf first; `server`: whether the peer is a client. Raises: PeerRevoked."""
        if self._revoked and (reason := self._reason(server, chain)):
            raise PeerRevoked(reason)

    def _recheck(self, some: list[Connected]) -> None:
        ended = 0
        for place, one in enumerate(some):
            if ended == ENDINGS_PER_TURN:
                self._rechecking.put_back(some[place:])
                return
            chain = one.chain()  # there is one before the handshake is done, and who was let in by it is not asked again
            if one.open and (chain or one.established) and (reason := self._reason(one.server, chain)):
                one.end(f"connection closed: {reason}", "CERT_REVOKED")
                ended += 1

    def _reason(self, server: bool, chain: Sequence[bytes]) -> str:
        direction: Direction = "inbound" if server else "outbound"
        try:
            if not chain:
                raise Malformed("it is empty")
            for place, der in enumerate(chain):
                issuer, serial = certificate_key(der)
                if serial in self._revoked.get(issuer, ()):
                    self._emit(Revocation(direction, known=True))
                    return f"{'intermediate' if place else 'peer'} certificate revoked: serial number {serial.hex()}"
        except Malformed as error:
            # What cannot be looked up must not pass as good.
            self._emit(Revocation(direction, known=False))
            return f"the peer's chain cannot be looked up in the revocation lists: {error}"
        return ""
