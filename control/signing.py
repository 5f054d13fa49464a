"""The certificate service: reads a request, asks `control.grants`, has `control.authority` sign."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc

from control.abort import abort
from control.authority import SigningError, lifetime_of, read_request
from control.cluster import NOT_LOADED, Cluster
from control.credentials import Credentials, metadata_values
from control.grants import NOT_AUTHENTICATED, Grant, Grants, Refusal
from control.rate import Rate
from control.refusals import Refusals
from control.root import new_serial
from control.trust import Trust
from mesh.proto import certificate_pb2

REQUESTS_PER_SECOND = 50.0
"""Of one node, on average: all certificates of a node with 200 identities in 4 s."""
REQUESTS_AT_ONCE = 500
REQUEST_S = 10.0
"""From the call until its request is there."""
IMPERSONATED = "ImpersonatedIdentity"
_SERVICE = "istio.v1.auth.IstioCertificateService"
_log = logging.getLogger("control.signing")


@dataclass(slots=True)
class CertificateService:
    """`istio.v1.auth.IstioCertificateService`, as Istio-compatible proxies call it.

    CreateCertificate is served as if requests were a stream of one, which looks the same on the wire: gRPC would read a unary
    request, of any size that the port takes, before anybody asks who sends it.
    """

    trust: Trust
    cluster: Cluster
    credentials: Credentials
    grants: Grants
    refusals: Refusals
    default_lifetime_s: int
    clock: Callable[[], float] = time.time
    _rate: Rate = field(default_factory=lambda: Rate(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE))

    def register(self, server: grpc.aio.Server) -> None:
        """Serve it."""
        handler = grpc.stream_unary_rpc_method_handler(
            self._create_certificate,
            certificate_pb2.IstioCertificateRequest.FromString,
            certificate_pb2.IstioCertificateResponse.SerializeToString,
        )
        handlers = grpc.method_handlers_generic_handler(_SERVICE, {"CreateCertificate": handler})
        server.add_generic_rpc_handlers((handlers,))

    async def _create_certificate(
        self, _requests: object, context: grpc.aio.ServicerContext
    ) -> certificate_pb2.IstioCertificateResponse:
        """Sign one request of a node."""
        if not self.cluster.is_loaded:
            await abort(context, grpc.StatusCode.UNAVAILABLE, NOT_LOADED)
        node = self.credentials.node_of(context)
        workload = self.credentials.workload_of(context) if node is None else None
        caller = f"node {node}" if node is not None else f"workload {workload}"
        if node is None and workload is None:
            self.refusals.tell("certificate", context.peer(), "no valid token and no certificate of this mesh")
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, NOT_AUTHENTICATED)
        request = await self._read(context)
        if request is grpc.aio.EOF:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "no certificate request was sent")
        clusters, impersonated = metadata_values(context, "clusterid"), _impersonated(request)
        if workload is not None:
            decision = self.grants.renew(workload, clusters, impersonated)
        else:
            decision = self.grants.decide(node, clusters, impersonated)
        if isinstance(decision, Refusal):
            self.refusals.tell("certificate", context.peer(), f"{caller}: {decision.reason}")
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, decision.reason)
        if not self._rate.take(caller, self.clock()):
            await abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{caller} asks for more than {REQUESTS_PER_SECOND:.0f} certificates a second: try again later",
            )
        try:
            leaf = self._sign(decision, request)
        except SigningError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"CSR signing error ({error})")
        except OSError as error:
            await abort(context, grpc.StatusCode.UNAVAILABLE, f"the certificate's life cannot be remembered: {error}")
        _log.info("certificate issued: %s identity=%s", caller, decision.spiffe_id)
        return certificate_pb2.IstioCertificateResponse(cert_chain=[leaf, self.trust.bundle_pem])

    async def _read(self, context: grpc.aio.ServicerContext) -> Any:
        """The one request. Who asks and then says nothing is not waited for: whoever may ask may do so without end."""
        try:
            async with asyncio.timeout(REQUEST_S):
                return await context.read()
        except TimeoutError:
            await abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"no certificate request within {REQUEST_S:g} s")

    def _sign(self, grant: Grant, request: certificate_pb2.IstioCertificateRequest) -> str:
        key = read_request(request.csr)
        lifetime = lifetime_of(request.validity_duration, self.default_lifetime_s)
        self.trust.granted(int(lifetime.total_seconds()))
        now, signer = datetime.fromtimestamp(self.clock(), UTC), self.trust.signer
        sign = signer.sign_workload if grant.kind == "workload" else signer.sign_node
        return sign(key, grant.spiffe_id, lifetime, now, new_serial())


def _impersonated(request: certificate_pb2.IstioCertificateRequest) -> str | None:
    """The identity asked for; None where the key is absent. A value that is no string reads as empty, which is refused."""
    fields = request.metadata.fields
    return fields[IMPERSONATED].string_value if IMPERSONATED in fields else None
