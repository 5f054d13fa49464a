"""Carries out what `ztunnel.certificates` decides: fetches from the CA, tells the workers, leaves a successor the keys."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Set
from typing import Protocol

from mesh.identity import Identity
from ztunnel.ca import FetchError
from ztunnel.certificates import Certificate, Certificates, Event, Failed, Issued, Priority
from ztunnel.channel import CertificateFailed, ForgetCertificate, SetCertificate
from ztunnel.residents import Residents

CertificateMessage = SetCertificate | CertificateFailed | ForgetCertificate
_log = logging.getLogger(__name__)


class Fetcher(Protocol):
    """Where certificates come from."""

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        """One certificate. Raises: FetchError."""

    def on_renewal(self, renewed: Callable[[Certificate], None], withdrawn: Callable[[Identity, str], None]) -> None:
        """Whom to give certificates that come unasked, and whom to tell that nobody may have an identity any more, and why."""

    def residents_changed(self) -> None:
        """Other pods or workloads live here than before."""

    def forget(self, identity: Identity) -> None:
        """Nobody wants an identity's certificates any more."""

    async def close(self) -> None:
        """Let go of the source."""


class Keeper(Protocol):
    """Where certificates outlive this process. Nothing here raises."""

    def keep(self, certificate: Certificate, now: float) -> None:
        """Leave a certificate to the successor, in the place of an older one."""

    def recall(self, identity: Identity, now: float) -> Certificate | None:
        """What a predecessor left, if it is valid still."""

    def forget(self, identity: Identity) -> None:
        """Destroy what is kept of an identity."""

    def forget_strangers(self, at_home: Callable[[Identity], bool]) -> None:
        """Destroy what a predecessor kept of identities that live here no longer."""

    def outdated(self) -> Set[Identity]:
        """What is kept so that no successor could open it."""


class Issuer:
    """Keeps the certificates of this node's residents fresh."""

    def __init__(
        self, fetcher: Fetcher, keeper: Keeper, residents: Residents, tell: Callable[[CertificateMessage], None]
    ) -> None:
        self._fetcher = fetcher
        self._keeper = keeper
        self._residents = residents
        self._tell = tell
        self._certificates = Certificates()
        self._wake = asyncio.Event()
        fetcher.on_renewal(self._renewed, self._withdrawn)

    def residents_changed(self) -> None:
        """Look again at who lives here: prefetch for who came, forget the keys of who left."""
        self._fetcher.residents_changed()
        self._prefetch()
        for identity in self._certificates.identities():
            if not self._residents.at_home(identity):
                self._publish(self._certificates.forget(identity))
        self._wake.set()

    def _prefetch(self) -> None:
        """Want what residents will need, as far as the queue has room; each fetch that ends makes some."""
        wanting = sorted(self._residents.meshed() - self._certificates.identities())
        for identity in wanting[: self._certificates.prefetch_room]:
            self._want(identity, Priority.WARMUP)

    def residents_complete(self) -> None:
        """All pods of the node are known: what a predecessor kept for others goes."""
        self._keeper.forget_strangers(self._residents.at_home)

    def _want(self, identity: Identity, priority: Priority) -> None:
        now = time.time()
        if identity not in self._certificates.identities() and (kept := self._keeper.recall(identity, now)):
            _log.info("%s goes on with the certificate of this proxy's predecessor", identity)
            self._publish(self._certificates.adopt(kept, now, _jitter()))
        else:
            self._publish(self._certificates.request(identity, priority, now))

    def need(self, identity: Identity) -> None:
        """A connection waits for a certificate."""
        if not self._residents.at_home(identity):
            self._tell(CertificateFailed(identity, "no workload of this node has this identity"))
            return
        self._want(identity, Priority.REALTIME)
        self._wake.set()

    async def run(self) -> None:
        """Fetch what is due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                self._keep_with_new_token()
                while identity := self._certificates.start(time.time()):
                    group.create_task(self._fetch(identity))
                due_at = self._certificates.next_due_at()
                try:
                    # Never longer than a minute: certificates live by the wall clock, timers by another.
                    async with asyncio.timeout(None if due_at is None else min(max(due_at - time.time(), 0), 60)):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _fetch(self, identity: Identity) -> None:
        try:
            certificate = await self._fetcher.fetch(identity, time.time())
        except FetchError as error:
            _log.warning("no certificate for %s: %s", identity, error)
            self._publish(self._certificates.failed(identity, str(error), time.time(), _jitter()))
        else:
            events = self._certificates.fetched(certificate, time.time(), _jitter())
            if events:  # somebody wants it still
                self._keeper.keep(certificate, time.time())
            self._publish(events)
        if identity not in self._certificates.identities():  # it left meanwhile: its source may have begun to follow it again
            self._fetcher.forget(identity)
        self._prefetch()
        self._wake.set()

    def _renewed(self, certificate: Certificate) -> None:
        events = self._certificates.renewed(certificate, time.time(), _jitter())
        if events:
            self._keeper.keep(certificate, time.time())
        self._publish(events)
        self._wake.set()

    def _withdrawn(self, identity: Identity, reason: str) -> None:
        _log.warning("the certificate of %s is withdrawn: %s", identity, reason)
        self._keeper.forget(identity)
        self._publish(self._certificates.withdrawn(identity, reason, time.time(), _jitter()))
        self._wake.set()

    def _keep_with_new_token(self) -> None:
        if outdated := self._keeper.outdated():
            for certificate in self._certificates.available(time.time()):
                if certificate.identity in outdated:
                    self._keeper.keep(certificate, time.time())

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Issued):
                self._tell(_set_certificate(event.certificate))
            elif isinstance(event, Failed):
                self._tell(CertificateFailed(event.identity, event.reason))
            else:
                self._keeper.forget(event.identity)
                self._fetcher.forget(event.identity)
                self._tell(ForgetCertificate(event.identity))

    def statements(self) -> list[SetCertificate]:
        """All valid certificates, for a worker that starts."""
        return [_set_certificate(certificate) for certificate in self._certificates.available(time.time())]

    def states(self) -> list[tuple[Identity, str, Certificate | None]]:
        """For the config dump."""
        return self._certificates.states(time.time())


def _jitter() -> float:
    return random.uniform(-1, 1)


def _set_certificate(certificate: Certificate) -> SetCertificate:
    return SetCertificate(
        certificate.identity,
        certificate.chain_pem,
        certificate.key_pem,
        certificate.roots_pem,
        certificate.not_after,
        certificate.federated,
    )
