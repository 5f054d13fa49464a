"""The certificates of this node's identities, and the connections that wait for one."""

import logging
import ssl
from collections.abc import Callable

from mesh.identity import Identity
from ztunnel.channel import CertificateFailed, ForgetCertificate, NeedCertificate, SetCertificate
from ztunnel.loop import Deadlines, Loop
from ztunnel.tls import Credentials
from ztunnel.verification import Verifications

WAIT_S = 10.0
MAX_WAITING = 4096
Waiter = Callable[[Credentials | str], None]
"""Called once: with the credentials, or with the reason why there are none."""
_log = logging.getLogger("ztunnel.worker")


class Vault:
    """Credentials by identity. Nothing here is ever written anywhere."""

    def __init__(
        self,
        loop: Loop,
        ask: Callable[[NeedCertificate], None],
        replaced: Callable[[Credentials | None], None] = lambda _: None,
        tls12: bool = False,
        verified_certificates: int = 0,
    ) -> None:
        """`replaced`: told of credentials for which no new connection begins any more; of None where there were none.

        `verified_certificates`: how many of peers are remembered; 0: none.
        """
        self._loop = loop
        self._ask = ask
        self._replaced = replaced
        self._tls12 = tls12
        self._verifications = Verifications(verified_certificates)
        self._held: dict[Identity, Credentials] = {}
        self._waiting: dict[Identity, dict[object, Waiter]] = {}
        self.deadlines = Deadlines(WAIT_S)

    def __len__(self) -> int:
        return len(self._held)

    def find(self, identity: Identity) -> Credentials | None:
        """What is there now."""
        return self._held.get(identity)

    def wait(self, identity: Identity, who: object, waiter: Waiter) -> None:
        """Call when the identity has a certificate, at once where it has, or will have none; asks for it."""
        credentials = self.find(identity)
        if credentials is not None:
            waiter(credentials)
            return
        waiting = self._waiting.setdefault(identity, {})
        if len(waiting) >= MAX_WAITING:
            waiter(f"too many connections wait for the certificate of {identity}")
            return
        if not waiting:
            self._ask(NeedCertificate(identity))
        waiting[who] = waiter
        self.deadlines.add((identity, who), self._loop.now, lambda: self._time_out(identity, who))

    def forget_waiter(self, identity: Identity, who: object) -> None:
        """Who waited is gone."""
        self.deadlines.discard((identity, who))
        waiting = self._waiting.get(identity)
        if waiting is not None:
            waiting.pop(who, None)
            if not waiting:
                del self._waiting[identity]

    def _time_out(self, identity: Identity, who: object) -> None:
        waiter = self._waiting.get(identity, {}).get(who)
        self.forget_waiter(identity, who)
        if waiter is not None:
            waiter(f"no certificate for {identity} within {WAIT_S:.0f} s")

    def set(self, certificate: SetCertificate) -> None:
        """Take a certificate in; connections that are open keep the old one."""
        try:
            credentials = Credentials(certificate, self._tls12, self._verifications)
        except (ssl.SSLError, ValueError, OSError) as error:
            _log.error("certificate of %s is of no use: %s", certificate.identity, error)
            self._tell(certificate.identity, f"certificate of {certificate.identity} is of no use: {error}")
            return
        self._replaced(self._held.get(certificate.identity))
        self._held[certificate.identity] = credentials
        self._tell(certificate.identity, credentials)

    def failed(self, failure: CertificateFailed) -> bool:
        """Nobody gets one now, and what there was has expired or is withdrawn: whether there was one."""
        held = self._held.pop(failure.identity, None)
        self._replaced(held)
        self._tell(failure.identity, f"no certificate for {failure.identity}: {failure.reason}")
        return held is not None

    def forget(self, message: ForgetCertificate) -> None:
        """Drop the key."""
        self._replaced(self._held.pop(message.identity, None))
        self._tell(message.identity, f"identity {message.identity} is forgotten: no local workload has it")

    def _tell(self, identity: Identity, outcome: Credentials | str) -> None:
        for who, waiter in self._waiting.pop(identity, {}).items():
            self.deadlines.discard((identity, who))
            waiter(outcome)
