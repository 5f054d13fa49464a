"""Certificates from an Istio-compatible CA: the key is made here and never leaves this process but to its workers."""

import asyncio
from collections.abc import Callable

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.identity import Identity
from mesh.proto.certificate_pb2 import IstioCertificateRequest, IstioCertificateResponse
from wire.grpc_reason import reason_of
from wire.grpc_tls import Endpoint
from ztunnel.certificates import Certificate

_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_TIMEOUT_S = 10.0
_MAX_CHAIN_BYTES = 1 << 20


UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What reading a certificate may raise, by the library's documentation."""


class FetchError(Exception):
    """No certificate, and why, for logs and for who waits."""


class ExpiredError(FetchError):
    """What there is was valid once."""


def make_request(identity: Identity) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A new key, and the PEM request for it: empty subject, the identity as its one (critical) URI name."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=True)
    return key, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_chain(
    identity: Identity, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, chain: list[str], now: float
) -> Certificate:
    """Check a CA's answer: [leaf, intermediates.., root bundle], for this key and no other identity, valid now.

    Raises: FetchError with what is wrong.
    """
    if sum(map(len, chain)) > _MAX_CHAIN_BYTES:
        raise FetchError(f"the CA's chain for {identity} is beyond {_MAX_CHAIN_BYTES} bytes")
    if len(chain) < 2:
        raise FetchError(f"the CA's chain for {identity} has {len(chain)} elements: expected leaf and roots")
    try:
        # An element may hold several PEM blocks: what follows the leaf is on its way to a root.
        leaf, *rest = x509.load_pem_x509_certificates(chain[0].encode())
        between = rest + [block for element in chain[1:-1] for block in x509.load_pem_x509_certificates(element.encode())]
        roots = x509.load_pem_x509_certificates(chain[-1].encode())
        certified = leaf.public_key()
        uris = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.UniformResourceIdentifier
        )
    except UNREADABLE as error:
        raise FetchError(f"the CA's chain for {identity} cannot be read: {error}") from error
    if not uris or uris[0] != str(identity):
        raise FetchError(f"the CA issued {uris[0] if uris else 'no identity'} instead of {identity}")
    if certified != key.public_key():
        raise FetchError(f"the CA certified another key than ours for {identity}")
    not_before, not_after = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if not not_before <= now < not_after:
        wrong = ExpiredError if now >= not_after else FetchError
        raise wrong(f"the certificate for {identity} is not valid now: compare this node's clock with the CA's")
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(identity, _pem([leaf, *between]), key_pem, _pem(roots), not_before, not_after)


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


class CertificateClient:
    """Asks a CA for certificates; connects anew when a file has changed that says whom we trust, or who we are."""

    def __init__(self, endpoint: Endpoint, ttl_s: int, impersonates: bool = True) -> None:
        """Who does not impersonate asks for the one identity that its own credential proves."""
        self._endpoint = endpoint
        self._ttl_s = ttl_s
        self._impersonates = impersonates
        self._files: tuple[bytes, tuple[bytes, bytes] | None] = (b"", None)
        self._channel: grpc.aio.Channel | None = None
        self._unreached = 0
        """How often nobody was reached: it says which of its names the server goes by, if it has two."""

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        """One certificate with a key of its own. Raises: FetchError; waits 20 s at most."""
        key, csr = make_request(identity)
        message = IstioCertificateRequest(csr=csr.decode(), validity_duration=self._ttl_s)
        if self._impersonates:
            message.metadata.update({"ImpersonatedIdentity": str(identity)})
        try:
            response = await self._by_either_name(message)
        except grpc.aio.AioRpcError as error:
            raise FetchError(f"CA {self._endpoint.address}: {identity}: {reason_of(error, self._endpoint)}") from error
        except (OSError, ValueError) as error:
            raise FetchError(f"CA {self._endpoint.address}: {error}") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The call was, not we: another fetch found new files and replaced the channel.
            raise FetchError(f"CA {self._endpoint.address}: the connection was replaced meanwhile") from None
        return read_chain(identity, key, list(response.cert_chain), now)

    async def _by_either_name(self, message: IstioCertificateRequest) -> IstioCertificateResponse:
        """Ask; where nobody was reached, once more by the other name of the server, if it has two."""
        unreached = self._unreached
        try:
            return await self._ask(message)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or not self._endpoint.server_name:
                raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or self._unreached == unreached:
                raise
            # The call was, not we: another fetch went over to the other name.
        if self._unreached == unreached:  # else another fetch has changed to that name already
            self._unreached += 1
            await self.close()
        return await self._ask(message)

    async def _ask(self, message: IstioCertificateRequest) -> IstioCertificateResponse:
        call = (await self._connected()).unary_unary(
            _METHOD,
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )
        response: IstioCertificateResponse = await call(message, timeout=_TIMEOUT_S, metadata=self._endpoint.metadata())
        return response

    async def _connected(self) -> grpc.aio.Channel:
        files = (self._endpoint.root_pem(), self._endpoint.client_pair())
        if self._channel is None or files != self._files:
            old, self._channel = self._channel, self._endpoint.open_channel(files[0], self._unreached)
            self._files = files
            if old is not None:
                await old.close()
        return self._channel

    def on_renewal(self, renewed: Callable[[Certificate], None], withdrawn: Callable[[Identity, str], None]) -> None:
        """A CA pushes nothing."""

    def residents_changed(self) -> None:
        """Who lives here is asked for by name."""

    def forget(self, identity: Identity) -> None:
        """A CA is asked once for each certificate: there is nothing to end."""

    async def close(self) -> None:
        """Close the connection; a fetch under way fails."""
        old, self._channel = self._channel, None
        if old is not None:
            await old.close()
