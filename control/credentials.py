"""Who calls: the node behind a bearer token or a client certificate, or the workload behind its own certificate.

Either is enough. A token is one of ours, or Kubernetes' of a service account, in `authorization: Bearer ...`; a node
certificate carries one URI SAN `spiffe://TRUST_DOMAIN/node/NAME`, a workload's is its identity. Certificates reach us only on
the ports that require one, where gRPC has checked chain and dates. A node that is no longer an object of the mesh is nobody,
whatever it holds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
from cryptography import x509

from control.service_accounts import ServiceAccounts
from control.tokens import Tokens
from mesh.identity import Identity

_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_BEARER = "bearer "


def node_spiffe_id(trust_domain: str, node: str) -> str:
    """The URI SAN of a node certificate: no workload identity, so that it is one nowhere."""
    return f"spiffe://{trust_domain}/node/{node}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call must show to be taken for a node."""

    tokens: Tokens
    trust_domain: str
    aliases: frozenset[str] = frozenset()
    """Trust domains in which nodes may have got their certificates, too."""
    accounts: ServiceAccounts | None = None
    """None: tokens of service accounts are nobody's."""

    def node_of(self, context: grpc.aio.ServicerContext) -> str | None:
        """The node that this call proved to be, None where it proved nothing."""
        certificates = context.auth_context().get("x509_pem_cert", ())
        return self.identify(metadata_values(context, "authorization"), certificates)

    def identify(self, authorization: Sequence[str], certificates: Iterable[bytes]) -> str | None:
        """The node named by a verified client certificate, else by the only bearer token."""
        for pem in certificates:
            return self._node_of_certificate(pem)
        if len(authorization) != 1 or not authorization[0].lower().startswith(_BEARER):
            return None
        token = authorization[0][len(_BEARER) :].strip()
        return self.tokens.node_of(token) or (self.accounts.node_of(token) if self.accounts is not None else None)

    def workload_of(self, context: grpc.aio.ServicerContext) -> Identity | None:
        """The workload whose certificate this call was made with."""
        for pem in context.auth_context().get("x509_pem_cert", ()):
            try:
                return Identity.parse(_only_uri(pem) or "")
            except ValueError:
                return None
        return None

    def _node_of_certificate(self, pem: bytes) -> str | None:
        uri = _only_uri(pem) or ""
        for domain in (self.trust_domain, *self.aliases):
            prefix = node_spiffe_id(domain, "")
            if uri.startswith(prefix) and _NODE.fullmatch(name := uri.removeprefix(prefix)):
                return name
        return None


def _only_uri(pem: bytes) -> str | None:
    """A certificate's URI name, None where it has none or several."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else None


def metadata_values(context: grpc.aio.ServicerContext, key: str) -> list[str]:
    """Every value of one text header of a call."""
    metadata = context.invocation_metadata() or ()
    return [value for name, value in metadata if name == key and isinstance(value, str)]
