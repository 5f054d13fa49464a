"""What a proxy leaves its successor: its certificates and keys, sealed, in the node's kernel keyring until they expire.

So a proxy that was killed serves mutual TLS again at once, the CA away or not. All of it is a convenience: whatever fails here
is logged once and costs only that the successor has to ask the CA.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.identity import Identity
from wire import keyring
from ztunnel.certificates import Certificate
from ztunnel.sealing import NONCE_BYTES, CannotOpen, Seal

MAX_KEYS = 2048
"""Of one node: with chains and roots of 4 KB, a third of what root may have in the kernel."""
_log = logging.getLogger(__name__)


class KeyStore:
    """The kept keys of one node of one installation."""

    def __init__(self, installation: str, node: str, token_path: Path | None) -> None:
        """Without a token nothing is kept. The token's file is read again for each use: somebody renews it."""
        self._scope = keyring.scope(installation, node)
        self._token_path = token_path
        self._kept: dict[Identity, bytes] = {}
        """With the digest of the token that each was sealed with."""
        self._told: set[int | str] = set()
        self._available = token_path is not None

    def keep(self, certificate: Certificate, now: float) -> None:
        """Leave a certificate to the successor, in the place of an older one."""
        identity, lifetime_s = certificate.identity, certificate.not_after - now
        token = self._token()
        if not token or lifetime_s <= 0:
            return
        if identity not in self._kept and len(self._kept) >= MAX_KEYS:
            self._tell_once("full", f"{MAX_KEYS} keys are kept for a successor: no more of them")
            return
        name = self._name(identity)
        payload = Seal(token).close(certificate, name, os.urandom(NONCE_BYTES))
        if len(payload) > keyring.MAX_PAYLOAD_BYTES:
            self._tell_once("large", f"certificate and roots of {identity} are too large to be kept for a successor")
            self.forget(identity)
            return
        with self._attempting():
            keyring.store(name, payload, lifetime_s)
            self._kept[identity] = _digest(token)

    def recall(self, identity: Identity, now: float) -> Certificate | None:
        """What a predecessor left, if it is valid still; what cannot be opened is destroyed."""
        token, name, payload = self._token(), self._name(identity), None
        if token:
            with self._attempting():
                payload = keyring.read(name)
        if payload is None:
            return None
        try:
            certificate = Seal(token).open(payload, name, identity)
        except CannotOpen as error:
            _log.info("the kept key of %s is of no use: %s", identity, error)
            self.forget(identity)
            return None
        if not certificate.not_before <= now < certificate.not_after:
            self.forget(identity)
            return None
        self._kept[identity] = _digest(token)
        return certificate

    def forget(self, identity: Identity) -> None:
        """Destroy what is kept of an identity."""
        self._kept.pop(identity, None)
        if self._available:
            with self._attempting():
                keyring.forget(self._name(identity))

    def forget_strangers(self, at_home: Callable[[Identity], bool]) -> None:
        """Destroy what a predecessor kept of identities that live here no longer."""
        if not self._available:
            return
        with self._attempting():
            for name in keyring.names(self._scope):
                try:
                    stays = at_home(Identity.parse(name.removeprefix(self._scope)))
                except ValueError:
                    stays = False
                if not stays:
                    keyring.forget(name)

    def outdated(self) -> set[Identity]:
        """What is kept under another token than the present one, so that no successor could open it."""
        token = self._token() if self._kept else b""
        digest = _digest(token)
        return {identity for identity, sealed_with in self._kept.items() if sealed_with != digest} if token else set()

    def _name(self, identity: Identity) -> str:
        return f"{self._scope}{identity}"

    def _token(self) -> bytes:
        if not self._available or self._token_path is None:
            return b""
        try:
            return self._token_path.read_bytes().strip()
        except OSError as error:
            self._tell_once("token", f"{error}: no keys are kept for a successor")
            return b""

    @contextmanager
    def _attempting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in keyring.UNAVAILABLE:
                self._available = False
            self._tell_once(error.errno or 0, f"{error}: a successor of this proxy will have to ask the CA for certificates")

    def _tell_once(self, what: int | str, line: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("%s", line)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
