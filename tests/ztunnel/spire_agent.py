"""A SPIRE agent, played by a real gRPC server on a unix socket that speaks its two interfaces.

It answers as SPIRE 1.16 was seen to: who subscribes hears nothing before all of its entries have documents; later on it hears
of each change as it comes, so also of an entry whose document is not signed yet, as of nobody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.identity import Identity
from mesh.proto import delegated_identity_pb2 as delegated
from mesh.proto import delegated_identity_pb2_grpc, spiffe_workload_pb2_grpc, spire_types_pb2
from mesh.proto import spiffe_workload_pb2 as workload

PROXY = frozenset({"unix:uid:0"})
"""What the agent finds out about the caller of its Workload API."""
LATER = b"\xfa\x07\x05field"
"""A field of a version to come: number 127."""


def der(pem: bytes) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))


class Agent(delegated_identity_pb2_grpc.DelegatedIdentityServicer, spiffe_workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Entries by selectors, and their documents; every subscriber gets every change."""

    def __init__(self, authority: Any) -> None:
        self.authority = authority
        self.bundles = {"spiffe://example.org": der(authority.root_pem), "spiffe://partner.net": b"never to be trusted"}
        self.federates = ["spiffe://partner.net"]
        self.entries: dict[frozenset[str], list[Identity]] = {}
        self.keys: dict[Identity, tuple[ec.EllipticCurvePrivateKey, bytes]] = {}
        self.subscribed: list[frozenset[str]] = []
        self.asked = 0
        """Streams of the Workload API."""
        self.open = 0
        self.refusal = ""
        self.changed = asyncio.Event()

    def register(self, identity: Identity, *selectors: str) -> None:
        self.entries.setdefault(frozenset(selectors), []).append(identity)
        self.renew(identity)

    def delete(self, identity: Identity) -> None:
        for owners in self.entries.values():
            owners[:] = [one for one in owners if one != identity]
        self.unsign(identity)

    def unsign(self, identity: Identity) -> None:
        """As where an entry is replaced, or the key is tainted that signed its document: the next one is on its way."""
        del self.keys[identity]
        self.tell()

    def renew(self, identity: Identity, ttl: timedelta = timedelta(hours=1)) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.keys[identity] = (key, der(self.authority.workload(key.public_key(), str(identity), ttl=ttl)))
        self.tell()

    def tell(self) -> None:
        waiters, self.changed = self.changed, asyncio.Event()
        waiters.set()

    def key_der(self, identity: Identity) -> bytes:
        return self.keys[identity][0].private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def entitled(self, selectors: frozenset[str]) -> list[Identity]:
        return [identity for entry, owners in self.entries.items() if entry <= selectors for identity in owners]

    async def _pushed(
        self, context: Any, make: Callable[[], Any], entitled: Callable[[], list[Identity]] = list
    ) -> AsyncIterator[Any]:
        if self.refusal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        self.open += 1
        try:
            while not all(one in self.keys for one in entitled()):
                await self.changed.wait()
            while not self.refusal:  # asked again before each push
                changed = self.changed
                yield make()
                await changed.wait()
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        finally:
            self.open -= 1

    async def SubscribeToX509SVIDs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        selectors = frozenset(f"{one.type}:{one.value}" for one in request.selectors)
        self.subscribed.append(selectors)
        async for message in self._pushed(context, lambda: self._delegated(selectors), lambda: self.entitled(selectors)):
            yield message

    def _delegated(self, selectors: frozenset[str]) -> Any:
        said = delegated.SubscribeToX509SVIDsResponse(
            x509_svids=[
                delegated.X509SVIDWithKey(
                    x509_svid=spire_types_pb2.X509SVID(
                        cert_chain=[self.keys[one][1]],
                        id=spire_types_pb2.SPIFFEID(
                            trust_domain=one.trust_domain, path=str(one).removeprefix(f"spiffe://{one.trust_domain}")
                        ),
                    ),
                    x509_svid_key=self.key_der(one),
                )
                for one in self.entitled(selectors)
                if one in self.keys
            ],
            federates_with=self.federates,
        ).SerializeToString()
        return delegated.SubscribeToX509SVIDsResponse.FromString(said + LATER)

    async def SubscribeToX509Bundles(self, _: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._pushed(
            context, lambda: delegated.SubscribeToX509BundlesResponse(ca_certificates=self.bundles)
        ):
            yield message

    async def FetchX509SVID(self, _: Any, context: Any) -> AsyncIterator[Any]:
        self.asked += 1
        if ("workload.spiffe.io", "true") not in {(key, value) for key, value in context.invocation_metadata()}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        async for message in self._pushed(context, self._own, lambda: self.entitled(PROXY)):
            if not message.svids:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
            yield message

    def _own(self) -> Any:
        bundle = self.bundles["spiffe://example.org"]
        said = workload.X509SVIDResponse(
            svids=[
                workload.X509SVID(
                    spiffe_id=str(one), x509_svid=self.keys[one][1], x509_svid_key=self.key_der(one), bundle=bundle
                )
                for one in self.entitled(PROXY)
                if one in self.keys
            ],
            federated_bundles={name: roots for name, roots in self.bundles.items() if name != "spiffe://example.org"},
        ).SerializeToString()
        return workload.X509SVIDResponse.FromString(said + LATER)


class Unknown(grpc.GenericRpcHandler):
    """What is not served, in the words of SPIRE's servers."""

    def service(self, call: Any) -> Any:
        async def refuse(_: bytes, context: Any) -> AsyncIterator[bytes]:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"unknown service {call.method.split('/')[1]}")
            yield b""

        return grpc.unary_stream_rpc_method_handler(refuse)


@asynccontextmanager
async def serving(agent: Agent, address: str, *services: Callable[[Any, Any], None]) -> AsyncIterator[None]:
    server = grpc.aio.server()
    for add in services:
        add(agent, server)
    server.add_generic_rpc_handlers((Unknown(),))
    server.add_insecure_port(address)
    await server.start()
    yield
    await server.stop(None)


DELEGATED = delegated_identity_pb2_grpc.add_DelegatedIdentityServicer_to_server
WORKLOAD = spiffe_workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server
