"""SPIRE as the source of this node's certificates: its agent's Delegated Identity API, one subscription for each identity.

The agent makes the keys and renews the documents; to whom it hands them out, its own configuration says (authorized_delegates).
An identity is asked for by what registration entries of pods select: k8s:ns and k8s:sa. Its roots are the bundle of its own
trust domain: those of federated domains would be believed about ours too.
"""

import asyncio
import time
from collections.abc import Callable

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
from ztunnel.svid import FETCH_TIMEOUT_S, follow, read_svid


class _Subscription:
    """One identity's document, as the agent sees it now."""

    def __init__(self) -> None:
        self.svid: X509SVIDWithKey | None = None
        self.error = ""
        self.told: Certificate | None = None
        self.task: asyncio.Task[None] | None = None


class DelegatedIdentities:
    """Certificates of pods from a SPIRE agent; see `ztunnel.issuer.Fetcher`. Made inside an event loop."""

    def __init__(self, address: str, clock: Callable[[], float] = time.time) -> None:
        self._address = address
        self._clock = clock
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = DelegatedIdentityStub(self._channel)
        self._subscriptions: dict[Identity, _Subscription] = {}
        self._bundles: dict[str, bytes] = {}
        self._bundle_task: asyncio.Task[None] | None = None
        self._bundle_error = ""
        self._changed = asyncio.Event()
        self._renewed: Callable[[Certificate], None] = lambda _: None

    def on_renewal(self, renewed: Callable[[Certificate], None]) -> None:
        """Whom to give what the agent pushes."""
        self._renewed = renewed

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
                    if error := subscription.error or self._bundle_error:
                        subscription.error = ""
                        raise FetchError(error)
                    await changed.wait()
        except TimeoutError:
            raise FetchError(f"SPIRE {self._address}: no answer about {identity} within {FETCH_TIMEOUT_S:.0f} s") from None

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
            bundles = follow(f"SPIRE {self._address}: bundles", self._call_bundles, self._take_bundles, self._lose_bundles)
            self._bundle_task = asyncio.ensure_future(bundles)
        subscription = self._subscriptions.get(identity)
        if subscription is None:
            subscription = self._subscriptions[identity] = _Subscription()
            subscription.task = asyncio.ensure_future(self._keep(identity, subscription))
        return subscription

    async def _keep(self, identity: Identity, subscription: _Subscription) -> None:
        selectors = [
            Selector(type="k8s", value=f"ns:{identity.namespace}"),
            Selector(type="k8s", value=f"sa:{identity.service_account}"),
        ]

        def take(response: SubscribeToX509SVIDsResponse) -> None:
            svids = [one for one in response.x509_svids if _names(one, identity)]
            subscription.svid = svids[0] if svids else None
            if not svids:
                subscription.error = (
                    f"SPIRE {self._address}: no entry gives k8s:ns:{identity.namespace} and k8s:sa:{identity.service_account} "
                    f"the identity {identity}: register it"
                )
            self._update(identity, subscription)

        def fail(reason: str) -> None:
            if subscription.svid is None:
                subscription.error = reason
                self._wake()

        request = SubscribeToX509SVIDsRequest(selectors=selectors)
        await follow(f"SPIRE {self._address}: {identity}", lambda: self._stub.SubscribeToX509SVIDs(request), take, fail)

    def _call_bundles(self) -> "grpc.aio.UnaryStreamCall[SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse]":
        return self._stub.SubscribeToX509Bundles(SubscribeToX509BundlesRequest())

    def _take_bundles(self, response: SubscribeToX509BundlesResponse) -> None:
        self._bundles = {name.removeprefix("spiffe://"): der for name, der in response.ca_certificates.items()}
        self._bundle_error = ""
        for identity, subscription in list(self._subscriptions.items()):
            self._update(identity, subscription)

    def _lose_bundles(self, reason: str) -> None:
        if not self._bundles:
            self._bundle_error = reason
            self._wake()

    def _update(self, identity: Identity, subscription: _Subscription) -> None:
        """Something of an identity changed: tell those who have a certificate, wake those who wait for one."""
        if subscription.told is not None:
            certificate = self._certificate(identity, subscription)
            if certificate is not None and certificate != subscription.told:
                subscription.told = certificate
                self._renewed(certificate)
        self._wake()

    def _certificate(self, identity: Identity, subscription: _Subscription) -> Certificate | None:
        """What is known, as a certificate; None and an error where it is none, or a part of it is missing still."""
        svid = subscription.svid
        if svid is None or not self._bundles:
            return None
        bundle = self._bundles.get(identity.trust_domain)
        try:
            if bundle is None:
                raise FetchError(f"SPIRE {self._address}: no bundle of trust domain {identity.trust_domain}")
            chain = list(svid.x509_svid.cert_chain)
            certificate = read_svid(identity, chain, svid.x509_svid_key, bundle, self._clock())
        except FetchError as error:
            subscription.error = str(error)
            return None
        subscription.error = ""
        return certificate

    def _wake(self) -> None:
        waiters, self._changed = self._changed, asyncio.Event()
        waiters.set()


def _names(svid: X509SVIDWithKey, identity: Identity) -> bool:
    return f"spiffe://{svid.x509_svid.id.trust_domain}{svid.x509_svid.id.path}" == str(identity)
