"""Whether a peer is who it must be, asked inside the handshake: OpenSSL verifies its chain, and its owner its names.

OpenSSL asks us where it would verify (SSL_CTX_set_cert_verify_callback), so that a peer whose names are refused reads an alert.
And a chain that comes again, byte for byte, the whole leaf and whatever certificates came with it, is not verified again:
with the same roots, for the same role, and while every certificate of it is valid, the answer would be the same. That it has
the key, each peer proves in each handshake; revocation lists are asked each time (see ztunnel.revocation).

Nothing is accepted by silence: a handshake that ends without an answer of ours is refused.
"""

import _ssl
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from ztunnel.authorities import Authorities
from ztunnel.connection_record import Flag
from ztunnel.openssl import OpenSSL, Verify

_UNSPECIFIED, _NOT_PERMITTED = 1, 47  # X509_V_*; the last one becomes alert 46, certificate_unknown
_MAX_PRESENTED, _MAX_BYTES = 4, 8192
"""Longer chains are verified each time."""


class PeerRefused(Exception):
    """The peer is not who it must be; the text says why."""

    flag: Flag = "IDENTITY_ERROR"
    verify_code = _NOT_PERMITTED
    """By which OpenSSL chooses the alert."""
    alerted = False
    """The peer is told, once what waits is sent."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A peer's certificate, up to a root of ours."""

    names: list[str]
    """Its URI names, as far as its root may speak for them."""
    chain: list[bytes]
    """DER, leaf first, with the root."""
    not_before: int = 0
    not_after: int = 0
    """Of all of them, unix seconds."""


class Asking(Protocol):
    """One end of a handshake."""

    verified: Verified | None
    """The peer's certificate; None until it was verified, and accepted, in this handshake."""

    def judge(self, peer: Verified) -> None:
        """The peer's chain is good: is it who it must be? That it has the key is not proved yet. Raises: PeerRefused."""


class Verifications:
    """Those that one worker remembers; the oldest is forgotten first."""

    def __init__(self, most: int, clock: Callable[[], float] = time.time) -> None:
        """`clock`: unix seconds."""
        self.most = most
        self._clock = clock
        self._known: dict[tuple[bytes, ...], Verified] = {}
        self._issuers: list[bytes] = []

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: tuple[bytes, ...]) -> Verified | None:
        """What was verified, if it is valid now."""
        found = self._known.get(key)
        if found is not None and not found.not_before <= self._clock() < found.not_after:
            del self._known[key]
            return None
        return found

    def keep(self, key: tuple[bytes, ...], verified: Verified) -> None:
        """Remember one, unless it is large, or more was shown than proves it: that can be varied without end by its owner."""
        if not self.most or len(key) > _MAX_PRESENTED + 1 or sum(map(len, key)) > _MAX_BYTES:
            return
        if not set(key[2:]) <= set(verified.chain):
            return
        if verified.chain[1:] == self._issuers:
            verified.chain[1:] = self._issuers  # the same objects
        self._issuers = verified.chain[1:]
        self._known.pop(key, None)
        while len(self._known) >= self.most:
            del self._known[next(iter(self._known))]
        self._known[key] = verified


class Verifier:
    """What one context's handshakes ask of peers. A thread has one handshake at a time."""

    def __init__(self, calls: OpenSSL | None, known: Verifications, authorities: Authorities, server: bool) -> None:
        """`server`: whether its peers are clients. Without `calls` all is asked after the handshake."""
        self._calls = calls
        self._known = known
        self._authorities = authorities
        self._realm = authorities.key + (b"server" if server else b"client")
        self._asking: Asking | None = None
        self._refusals: list[BaseException] = []
        """Of the handshake that goes on: none or one."""

    def attach(self, context: ssl.SSLContext) -> object:
        """Have it asked by the context's handshakes; what is returned must live as long as the context."""
        if self._calls is None:
            return None
        try:
            verify = Verify(self._verify)
        except MemoryError:  # where no memory may be executed that was written before
            self._calls = None
            return None
        self._calls.ask(context, verify)
        return verify

    def shake_hands(self, tls: ssl.SSLObject, asking: Asking) -> None:
        """Go on with a handshake.

        Raises: PeerRefused; ssl.SSLWantReadError until more has come; other ssl.SSLError.
        """
        self._asking = asking
        self._refusals.clear()
        try:
            tls.do_handshake()
        except ssl.SSLError:
            if not self._refusals:
                raise
        finally:
            self._asking = None
        if self._refusals:
            raise self._refusals.pop()  # by no name: it would refer to itself, and OpenSSL's memory wait for a collector
        if asking.verified is None:
            self._after(tls, asking)

    def _after(self, tls: ssl.SSLObject, asking: Asking) -> None:
        """A handshake is done in which OpenSSL did not ask."""
        if tls.session_reused:
            raise PeerRefused("the peer resumed a session: only whole handshakes are served")
        if self._calls is not None:
            raise PeerRefused("the peer's certificate was not verified in this handshake")
        verified = self._believed(read_verified(tls))
        asking.judge(verified)
        asking.verified = verified

    def _believed(self, verified: Verified) -> Verified:
        """A verified certificate without the names for which its root may not speak. Raises: PeerRefused where none is left."""
        names = self._authorities.believed(verified.names, verified.chain[-1] if verified.chain else b"")
        if names == verified.names:
            return verified
        if not names:
            raise PeerRefused(f"wrong trust domain: the root of its certificate may not speak for {verified.names[:4]}")
        return replace(verified, names=names)

    def _verify(self, store: int, _argument: object) -> int:
        """OpenSSL asks. What is raised here would be lost, and the answer anything. Long, as each call costs: it runs cold."""
        calls, asking = self._calls, self._asking
        assert calls is not None
        try:
            key: tuple[bytes, ...]
            if calls.count(calls.presented(store)) == 1:
                key = self._realm, calls.der(calls.leaf(store))
            else:
                key = self._realm, *_presented(calls, store)
            verified = self._known.find(key)
            if verified is None:
                if calls.verify(store) != 1:
                    return 0
                verified = self._believed(_read(calls, store, key[1], self._known.most > 0))
                self._known.keep(key, verified)
            if asking is not None:
                asking.judge(verified)
                asking.verified = verified
            calls.pause_after_messages(calls.connection(store))
        except BaseException as error:
            self._refusals.append(error)
            if isinstance(error, PeerRefused):
                error.alerted = True
                calls.set_error(store, error.verify_code)
            else:
                calls.set_error(store, _UNSPECIFIED)
            return 0
        return 1


def _presented(calls: OpenSSL, store: int) -> Iterator[bytes]:
    """What the peer sent, DER; too much of it is not remembered."""
    presented = calls.presented(store)
    yield calls.der(calls.leaf(store))  # the first of them
    for place in range(1, min(calls.count(presented), _MAX_PRESENTED + 1)):
        yield calls.der(calls.at(presented, place))


def _read(calls: OpenSSL, store: int, leaf: bytes, lasting: bool) -> Verified:
    """What was verified; its times only if it is to be remembered."""
    chain = calls.chain(store)
    certificates = [calls.at(chain, place) for place in range(calls.count(chain))]
    names = calls.uris(certificates[0])
    calls.clear_errors()
    verified = Verified(names, [leaf, *map(calls.der, certificates[1:])])
    if not lasting:
        return verified
    times = list(map(calls.validity, certificates))
    return replace(verified, not_before=max(first for first, _ in times), not_after=min(last for _, last in times))


def read_verified(peer: ssl.SSLObject) -> Verified:
    """The same of a handshake that is done, as far as Python's `ssl` tells it. Nothing was verified in one that was resumed."""
    certificate = peer.getpeercert()
    alternatives: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ()) if certificate else ()  # type: ignore[assignment]
    # Public from Python 3.13 on; the object below has it since 3.10.
    chain = peer._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined]
    names = [value for kind, value in alternatives if kind == "URI"]
    return Verified(names, [one.public_bytes(_ssl.ENCODING_DER) for one in chain])
