"""Carries out what `ztunnel.certificates` decides: fetches from the CA, waits, and tells the workers."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
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


class Issuer:
    """Keeps the certificates of this node's residents fresh."""

    def __init__(self, fetcher: Fetcher, residents: Residents, tell: Callable[[CertificateMessage], None]) -> None:
        self._fetcher = fetcher
        self._residents = residents
        self._tell = tell
        self._certificates = Certificates()
        self._wake = asyncio.Event()

    def residents_changed(self) -> None:
        """Look again at who lives here: prefetch for who came, forget the keys of who left."""
        now = time.time()
        wanted = self._certificates.identities()
        for identity in self._residents.meshed() - wanted:
            self._publish(self._certificates.request(identity, Priority.WARMUP, now))
        for identity in wanted:
            if not self._residents.at_home(identity):
                self._publish(self._certificates.forget(identity))
        self._wake.set()

    def need(self, identity: Identity) -> None:
        """A connection waits for a certificate."""
        if not self._residents.at_home(identity):
            self._tell(CertificateFailed(identity, "no workload of this node has this identity"))
            return
        self._publish(self._certificates.request(identity, Priority.REALTIME, time.time()))
        self._wake.set()

    async def run(self) -> None:
        """Fetch what is due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
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
            self._publish(self._certificates.failed(identity, str(error), time.time(), random.uniform(-1, 1)))
        else:
            self._publish(self._certificates.fetched(certificate, time.time()))
        self._wake.set()

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Issued):
                self._tell(_set_certificate(event.certificate))
            elif isinstance(event, Failed):
                self._tell(CertificateFailed(event.identity, event.reason))
            else:
                self._tell(ForgetCertificate(event.identity))

    def statements(self) -> list[SetCertificate]:
        """All valid certificates, for a worker that starts."""
        return [_set_certificate(certificate) for certificate in self._certificates.available(time.time())]

    def states(self) -> list[tuple[Identity, str, Certificate | None]]:
        """For the config dump."""
        return self._certificates.states(time.time())


def _set_certificate(certificate: Certificate) -> SetCertificate:
    return SetCertificate(
        certificate.identity, certificate.chain_pem, certificate.key_pem, certificate.roots_pem, certificate.not_after
    )
