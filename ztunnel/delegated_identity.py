"""SPIRE as the source of this node's certificates: its agent's Delegated Identity API, one subscription for each identity.

The agent makes the keys and renews the documents; to whom it hands them out, its own configuration says (authorized_delegates).
An identity is asked for by what registration entries of pods select: k8s:ns and k8s:sa, and k8s:pod-uid of its pods here, as
SPIRE's controller manager writes them. Its roots are the bundle of its own trust domain; and, about their own identities alone,
those of the domains with which its entries federate, where they are other names of this mesh (TRUST_DOMAIN_ALIASES).

An answer without the identity means that nobody may have it, if it is a stream's first: an agent answers when it has what its
entries promise. Later on it may mean that an entry was replaced, or a key of the CA is tainted, and the next document is a
moment away: another stream tells.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Set

import grpc

from mesh.identity import Identity
from mesh.proto.delegated_identity_pb2 import (
    SubscribeToX509BundlesRequest,
    SubscribeToX509BundlesResponse,
    SubscribeToX509SVIDsRequest,
    SubscribeToX509SVIDsResponse,
    X509SVIDWithKey,
)
from mesh.proto.delegated_identity_pb2_grpc import DelegatedIdentityStub
from mesh.proto.spire_types_pb2 import Selector
from ztunnel.ca import FetchError
from ztunnel.certificates import Certificate
from ztunnel.svid import FETCH_TIMEOUT_S, follow, open_channel, read_svid

_SCHEME = "spiffe://"
_SHOWN = 4
_log = logging.getLogger(__name__)


class _Subscription:
    """One identity's document, as the agent sees it now."""

    def __init__(self) -> None:
        self.svid: X509SVIDWithKey | None = None
        self.error = ""
        """Why there is no document; empty while the agent has yet to answer."""
        self.lost = ""
        """Why its stream has ended, while there is no other."""
        self.told: Certificate | None = None
        self.federates: Set[str] = frozenset()
        """The trust domains with which its entries federate."""
        self.pods: Set[str] = frozenset()
        """With whose uids it was asked for."""
        self.task: asyncio.Task[None] | None = None


class DelegatedIdentities:
    """Certificates of pods from a SPIRE agent; see `ztunnel.issuer.Fetcher`. Made inside an event loop."""

    def __init__(
        self,
        address: str,
        pods: Callable[[Identity], Set[str]] = lambda _: frozenset(),
        clock: Callable[[], float] = time.time,
        aliases: Set[str] = frozenset(),
    ) -> None:
        """`pods`: the uids of an identity's pods on this node; `aliases`: the other trust domains of this mesh."""
        self._address = address
        self._pods = pods
        self._aliases = aliases
        self._clock = clock
        self._channel = open_channel(address)
        self._stub = DelegatedIdentityStub(self._channel)
        self._subscriptions: dict[Identity, _Subscription] = {}
        self._bundles: dict[str, bytes] = {}
        self._bundle_task: asyncio.Task[None] | None = None
        self._trouble = ""
        """Why the stream of bundles has ended, while there is no other."""
        self._noted = ""
        """What the log has said of streams that ended, since any spoke: all of them end for one reason mostly."""
        self._changed = asyncio.Event()
        self._renewed: Callable[[Certificate], None] = lambda _: None
        self._withdrawn: Callable[[Identity, str], None] = lambda *_: None

    def on_renewal(self, renewed: Callable[[Certificate], None], withdrawn: Callable[[Identity, str], None]) -> None:
        """Whom to tell what the agent pushes, or takes away and why."""
        self._renewed, self._withdrawn = renewed, withdrawn

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        """What the agent has for an identity. Raises: FetchError; waits 10 s at most."""
        subscription = self._subscribe(identity)
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                while True:
                    changed = self._changed
                    certificate = self._certificate(identity, subscription)
                    if certificate is not None:
                        subscription.told = certificate
                        return certificate
                    await changed.wait()
        except TimeoutError:
            raise FetchError(f"SPIRE {self._address}: no answer about {identity} within {FETCH_TIMEOUT_S:.0f} s") from None

    def residents_changed(self) -> None:
        """Ask anew for who has nothing yet, where other pods have the identity by now."""
        for identity, subscription in self._subscriptions.items():
            if subscription.svid is None and subscription.pods != self._pods(identity):
                self._open(identity, subscription)

    def forget(self, identity: Identity) -> None:
        """End an identity's subscription."""
        subscription = self._subscriptions.pop(identity, None)
        if subscription is not None and subscription.task is not None:
            subscription.task.cancel()

    async def close(self) -> None:
        """End all of them."""
        tasks = [one.task for one in self._subscriptions.values()] + [self._bundle_task]
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        await self._channel.close()

    def _subscribe(self, identity: Identity) -> _Subscription:
        if self._bundle_task is None:
            bundles = follow(f"SPIRE {self._address}", self._call_bundles, self._take_bundles, self._lose_bundles)
            self._bundle_task = asyncio.ensure_future(bundles)
        subscription = self._subscriptions.get(identity)
        if subscription is None:
            subscription = self._subscriptions[identity] = _Subscription()
            self._open(identity, subscription)
        return subscription

    def _open(self, identity: Identity, subscription: _Subscription) -> None:
        if subscription.task is not None:
            subscription.task.cancel()
        subscription.error = ""
        subscription.task = asyncio.ensure_future(self._keep(identity, subscription))

    async def _keep(self, identity: Identity, subscription: _Subscription) -> None:
        def call() -> "grpc.aio.UnaryStreamCall[SubscribeToX509SVIDsRequest, SubscribeToX509SVIDsResponse]":
            subscription.pods = self._pods(identity)
            values = _selectors(identity, subscription.pods)
            selectors = [Selector(type="k8s", value=value) for value in values]
            return self._stub.SubscribeToX509SVIDs(SubscribeToX509SVIDsRequest(selectors=selectors))

        def take(response: SubscribeToX509SVIDsResponse, first: bool) -> bool:
            return self._take(identity, subscription, response, first)

        def fail(reason: str, _: bool) -> None:
            subscription.lost = subscription.error = reason
            self._note(reason)
            self._wake()

        await follow(f"SPIRE {self._address}", call, take, fail)

    def _take(
        self, identity: Identity, subscription: _Subscription, response: SubscribeToX509SVIDsResponse, first: bool
    ) -> bool:
        named = {_name(one): one for one in reversed(response.x509_svids)}  # of several of one identity the first
        svid = named.get(str(identity))
        if svid is None and subscription.svid is not None and not first:
            return False
        subscription.svid, subscription.error, subscription.lost = svid, "", ""
        subscription.federates = self._aliases & {name.removeprefix(_SCHEME) for name in response.federates_with}
        self._noted = ""
        if svid is None:
            subscription.error = self._nobody(identity, subscription.pods, sorted(named))
            if subscription.told is not None:
                subscription.told = None
                self._withdrawn(identity, subscription.error)
        self._update(identity, subscription)
        return True

    def _nobody(self, identity: Identity, pods: Set[str], named: list[str]) -> str:
        selectors = ", ".join(f"k8s:{value}" for value in _selectors(identity, pods)[: 2 + _SHOWN])
        others = f", only {', '.join(named[:_SHOWN])}" if named else ""
        return f"SPIRE {self._address}: no entry for {selectors} gives the identity {identity}{others}: register one"

    def _call_bundles(self) -> "grpc.aio.UnaryStreamCall[SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse]":
        return self._stub.SubscribeToX509Bundles(SubscribeToX509BundlesRequest())

    def _take_bundles(self, response: SubscribeToX509BundlesResponse, _: bool) -> bool:
        if self._trouble:
            _log.info("SPIRE %s: serves again", self._address)
        self._trouble = self._noted = ""
        self._bundles = {name.removeprefix(_SCHEME): der for name, der in response.ca_certificates.items()}
        for identity, subscription in list(self._subscriptions.items()):
            self._update(identity, subscription)
        return True

    def _lose_bundles(self, reason: str, _: bool) -> None:
        self._trouble = reason
        self._note(reason)
        self._wake()

    def _note(self, reason: str) -> None:
        if reason != self._noted:
            _log.warning("%s", reason)
        self._noted = reason

    def _update(self, identity: Identity, subscription: _Subscription) -> None:
        """Something of an identity changed: tell what there is now, whether or not it was asked for again, wake who waits."""
        try:
            certificate = self._certificate(identity, subscription)
        except FetchError:
            certificate = None  # what there was serves on; who asks will hear what is wrong
        if certificate is not None and certificate != subscription.told:
            subscription.told = certificate
            self._renewed(certificate)
        self._wake()

    def _certificate(self, identity: Identity, subscription: _Subscription) -> Certificate | None:
        """What is known, as a certificate; None: the agent has yet to answer. Raises: FetchError where there is none."""
        if not self._bundles:
            if self._trouble:
                raise FetchError(self._trouble)
            return None
        bundle, svid = self._bundles.get(identity.trust_domain), subscription.svid
        if bundle is None:
            there = ", ".join(sorted(self._bundles)[:_SHOWN])
            raise FetchError(
                f"SPIRE {self._address}: no bundle of trust domain {identity.trust_domain}, only of {there}: "
                "set TRUST_DOMAIN, of proxies and control, to the agent's"
            )
        if svid is None:
            if subscription.error:
                raise FetchError(subscription.error)
            return None
        partners = subscription.federates - {identity.trust_domain}
        federated = {domain: self._bundles.get(domain, b"") for domain in partners}
        try:
            return read_svid(identity, list(svid.x509_svid.cert_chain), svid.x509_svid_key, bundle, self._clock(), federated)
        except FetchError as error:
            raise FetchError(subscription.lost or str(error)) from error

    def _wake(self) -> None:
        waiters, self._changed = self._changed, asyncio.Event()
        waiters.set()


def _selectors(identity: Identity, pods: Set[str]) -> list[str]:
    """Of type k8s, as SPIRE's attestor of Kubernetes workloads finds them."""
    return [f"ns:{identity.namespace}", f"sa:{identity.service_account}", *(f"pod-uid:{uid}" for uid in sorted(pods))]


def _name(svid: X509SVIDWithKey) -> str:
    return f"spiffe://{svid.x509_svid.id.trust_domain}{svid.x509_svid.id.path}"
