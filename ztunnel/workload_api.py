"""SPIFFE's Workload API as the source of certificates: the identities to which this proxy itself is entitled, in one stream.

An identity is withdrawn where a stream that had it says that it is gone, and the next one says so too. The first alone may mean
that an entry was replaced; the second alone, as after the agent's restart, that it could not find out who this process is: an
attestor that fails is left out (SPIRE 1.16), and so are the entries that need it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Set

import grpc

from mesh.identity import Identity
from mesh.proto.spiffe_workload_pb2 import X509SVID, X509SVIDRequest, X509SVIDResponse
from mesh.proto.spiffe_workload_pb2_grpc import SpiffeWorkloadAPIStub
from ztunnel.ca import FetchError
from ztunnel.certificates import Certificate
from ztunnel.der import Malformed, split_elements
from ztunnel.svid import FETCH_TIMEOUT_S, follow, open_channel, read_svid

_HEADER = (("workload.spiffe.io", "true"),)
"""Without it an agent refuses every call: what makes a browser or a proxy call for somebody does not send it."""
_SHOWN = 4
_log = logging.getLogger(__name__)


class WorkloadApi:
    """Certificates from an agent's Workload API; see `ztunnel.issuer.Fetcher`. Made inside an event loop."""

    def __init__(self, address: str, clock: Callable[[], float] = time.time, aliases: Set[str] = frozenset()) -> None:
        """`aliases`: the other trust domains of this mesh."""
        self._address = address
        self._aliases = aliases
        self._federated: dict[str, bytes] = {}
        """Roots of those with which the entries federate."""
        self._clock = clock
        self._channel = open_channel(address)
        self._stub = SpiffeWorkloadAPIStub(self._channel)
        self._svids: dict[str, X509SVID] | None = None
        self._trouble = ""
        """Why the stream has ended, while there is no other."""
        self._spoken = False
        """This stream has said something."""
        self._doubted = False
        """The stream before this one said that something is gone."""
        self._told: dict[Identity, Certificate | None] = {}
        """All that are wanted, with the last certificate of each."""
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._renewed: Callable[[Certificate], None] = lambda _: None
        self._withdrawn: Callable[[Identity, str], None] = lambda *_: None

    def on_renewal(self, renewed: Callable[[Certificate], None], withdrawn: Callable[[Identity, str], None]) -> None:
        """Whom to tell what the agent pushes, or takes away and why."""
        self._renewed, self._withdrawn = renewed, withdrawn

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        """What the agent has for an identity. Raises: FetchError; waits 10 s at most."""
        if self._task is None:
            what = f"Workload API {self._address}"
            self._task = asyncio.ensure_future(follow(what, self._call, self._take, self._fail))
        self._told.setdefault(identity)
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                while self._svids is None:
                    if self._trouble:
                        raise FetchError(self._trouble)
                    await self._changed.wait()
        except TimeoutError:
            raise FetchError(f"Workload API {self._address}: no answer within {FETCH_TIMEOUT_S:.0f} s") from None
        certificate = self._told[identity] = self._certificate(identity, self._svids)
        return certificate

    def residents_changed(self) -> None:
        """The agent tells of all identities that this proxy may have."""

    def forget(self, identity: Identity) -> None:
        """Renewals of an identity concern nobody any more."""
        self._told.pop(identity, None)

    async def close(self) -> None:
        """End the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    def _call(self) -> "grpc.aio.UnaryStreamCall[X509SVIDRequest, X509SVIDResponse]":
        return self._stub.FetchX509SVID(X509SVIDRequest(), metadata=_HEADER)

    def _take(self, response: X509SVIDResponse, first: bool) -> bool:
        svids = {one.spiffe_id: one for one in reversed(response.svids)}  # of several of one identity the first
        if not first and any(told and str(identity) not in svids for identity, told in self._told.items()):
            self._doubted = True
            return False
        if self._trouble:
            _log.info("Workload API %s: serves again", self._address)
        self._svids, self._trouble = svids, ""
        partners = {name.removeprefix("spiffe://"): roots for name, roots in response.federated_bundles.items()}
        self._federated = {domain: roots for domain, roots in partners.items() if domain in self._aliases}
        self._tell(svids)
        self._spoken, self._doubted = True, False
        return True

    def _tell(self, svids: dict[str, X509SVID]) -> None:
        for identity, told in list(self._told.items()):
            try:
                certificate = self._certificate(identity, svids)
            except FetchError as error:
                if self._doubted and str(identity) not in svids:
                    self._withdraw(identity, str(error))
                continue  # what there was serves on; a refresh will say what is wrong
            if certificate != told:
                self._told[identity] = certificate
                self._renewed(certificate)
        self._wake()

    def _fail(self, reason: str, denied: bool) -> None:
        if reason != self._trouble:
            _log.warning("%s", reason)
        self._trouble = reason
        if denied and self._doubted:
            self._svids = None
            for identity in list(self._told):
                self._withdraw(identity, reason)
        self._spoken, self._doubted = False, denied and self._spoken
        self._wake()

    def _withdraw(self, identity: Identity, reason: str) -> None:
        if self._told[identity] is not None:
            self._told[identity] = None
            self._withdrawn(identity, reason)

    def _wake(self) -> None:
        waiters, self._changed = self._changed, asyncio.Event()
        waiters.set()

    def _certificate(self, identity: Identity, svids: dict[str, X509SVID]) -> Certificate:
        svid = svids.get(str(identity))
        if svid is None:
            known = ", ".join(sorted(svids)[:_SHOWN]) or "nobody"
            raise FetchError(f"Workload API {self._address}: this proxy is not entitled to {identity}, only to {known}")
        try:
            chain = split_elements(svid.x509_svid)
        except Malformed as error:
            raise FetchError(f"the agent's document of {identity} cannot be read: {error}") from error
        federated = {domain: roots for domain, roots in self._federated.items() if domain != identity.trust_domain}
        try:
            return read_svid(identity, chain, svid.x509_svid_key, svid.bundle, self._clock(), federated)
        except FetchError as error:
            raise FetchError(self._trouble or str(error)) from error
