"""Certificates that a SPIRE agent pushes: what they look like, and the streams that bring them.

A document is held to the same rules as a CA's answer (`ztunnel.ca.read_chain`): the identity that was asked for, valid now,
with its own key.
"""

import asyncio
import errno
import logging
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from mesh.identity import Identity
from wire.grpc_reason import reason_of
from ztunnel.authorities import Federated
from ztunnel.ca import UNREADABLE, ExpiredError, FetchError, read_chain
from ztunnel.certificates import Certificate
from ztunnel.der import Malformed, split_elements

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
FETCH_TIMEOUT_S = 10.0
MAX_BUNDLE_BYTES = 1 << 20
MAX_FEDERATED_ROOTS, MAX_FEDERATED_BYTES = 64, 1 << 17
"""Of one domain; somebody else says how many. Each worker loads them for each identity, and 4,000 take it 2 s and 30 MiB."""
_UNREACHED = re.compile(r"connect failed: addr: unix:.* error: ([^:]+)$")
_MENDS = {
    "not configured as an authorized delegate": ": name this proxy's SPIFFE ID in the agent's authorized_delegates",
    "no identity issued": ": register an entry of this node whose selectors are this proxy's",
    "unknown service spire.api.agent": ": SPIRE_ADMIN_SOCKET must be the agent's admin_socket_path",
    "unknown service SpiffeWorkloadAPI": ": SPIFFE_ENDPOINT_SOCKET must be the agent's socket_path",
}
"""What an agent's words call for (SPIRE 1.16)."""
_T = TypeVar("_T")
_Name = tuple[tuple[str, str], ...]
_log = logging.getLogger(__name__)


def read_svid(
    identity: Identity,
    chain: Sequence[bytes],
    key: bytes,
    bundle: bytes,
    now: float,
    federated: Mapping[str, bytes] = MappingProxyType({}),
) -> Certificate:
    """A document of an agent: chain and key in DER, roots one after the other, those of federated trust domains by domain.

    Raises: FetchError with what is wrong.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise FetchError(f"the agent's roots of {identity} are beyond {MAX_BUNDLE_BYTES} bytes")
    try:
        private = load_der_private_key(key, password=None)
        roots = split_elements(bundle)
    except (Malformed, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FetchError(f"the agent's document of {identity} cannot be read: {error}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise FetchError(f"the agent's key of {identity} is neither ECDSA nor RSA")
    if not chain or not roots:
        raise FetchError(f"the agent's document of {identity} has no {'roots' if chain else 'certificate'}")
    pem = [ssl.DER_cert_to_PEM_cert(one) for one in chain]
    try:
        certificate = read_chain(identity, private, [*pem, "".join(map(ssl.DER_cert_to_PEM_cert, roots))], now)
    except ExpiredError as error:
        raise FetchError(f"the agent's document of {identity} has expired: does the agent reach its server?") from error
    if not federated:
        return certificate
    try:
        return replace(certificate, federated=read_federated(certificate.roots_pem, federated))
    except ValueError as error:
        raise FetchError(f"the agent's roots of {identity} cannot be read: {error}") from error


def read_federated(roots_pem: bytes, bundles: Mapping[str, bytes]) -> Federated:
    """Other trust domains' roots, with nobody's where they cannot be read: then nobody is believed about that domain.

    A root that bears the name of another one's is left out: OpenSSL would look in the one for who signed with the other's key,
    and our own peers could be refused. Raises: ValueError for roots of ours without a name.
    """
    # As much of each as tells that it is too much: what it is made of is remembered.
    return _federated(roots_pem, tuple((domain, bundles[domain][: MAX_FEDERATED_BYTES + 1]) for domain in sorted(bundles)))


@lru_cache(16)
def _federated(roots_pem: bytes, bundles: tuple[tuple[str, bytes], ...]) -> Federated:
    named: dict[_Name, tuple[str, list[bytes]]] = {}
    """Whose the first root of a name was, and all of theirs."""
    found = []
    ours = [_named(root) for root in x509.load_pem_x509_certificates(roots_pem)]
    for domain, roots in [("", ours), *((domain, _read_bundle(domain, bundle)) for domain, bundle in bundles)]:
        kept = []
        for name, pem in roots:
            owner, same = named.setdefault(name, (domain, []))
            if owner == domain or pem in same:
                same.append(pem)
                kept.append(pem)
            else:
                _log.warning(
                    "a root of the federated trust domain %s has the name of one of %s: left out", domain, owner or "ours"
                )
        found.append((domain, b"".join(kept)))
    return tuple(found[1:])


@lru_cache(16)
def _read_bundle(domain: str, bundle: bytes) -> tuple[tuple[_Name, bytes], ...]:
    """A federated trust domain's roots, by name; none, and a warning, where they cannot be read: somebody else wrote them."""
    try:
        if len(bundle) > MAX_FEDERATED_BYTES:
            raise ValueError(f"beyond {MAX_FEDERATED_BYTES} bytes")
        elements = split_elements(bundle)
        if len(elements) > MAX_FEDERATED_ROOTS:
            raise ValueError(f"{len(elements)} roots are beyond {MAX_FEDERATED_ROOTS}")
        roots = tuple(_named(x509.load_der_x509_certificate(one)) for one in elements)
        if roots:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=b"".join(pem for _, pem in roots).decode())
    except (*UNREADABLE, ssl.SSLError) as error:
        _log.warning("the roots of the federated trust domain %s cannot be read: %s", domain, error)
        return ()
    return roots


def _named(root: x509.Certificate) -> tuple[_Name, bytes]:
    """A root's subject, for OpenSSL's comparison or a looser one: without case, further spaces and order; and the root, PEM."""
    name = tuple(sorted((one.oid.dotted_string, " ".join(str(one.value).lower().split())) for one in root.subject))
    return name, root.public_bytes(Encoding.PEM)


def open_channel(address: str) -> grpc.aio.Channel:
    """To an agent's socket; it tries to connect whenever `follow` asks, which costs little on one machine."""
    pause_ms = int(FIRST_PAUSE_S * 1000)
    options = [("grpc.initial_reconnect_backoff_ms", pause_ms), ("grpc.max_reconnect_backoff_ms", pause_ms)]
    return grpc.aio.insecure_channel(address, options=options)


async def follow(
    what: str,
    call: Callable[[], "grpc.aio.UnaryStreamCall[Any, _T]"],
    take: Callable[[_T, bool], bool],
    fail: Callable[[str, bool], None],
) -> None:
    """Read a stream for ever, and open it again when it ends.

    `take` gets a message, and whether it is its stream's first; it says whether to go on with this stream: else another one is
    opened at once. `fail` gets why there are none, and whether it is that the agent permits none.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        reason, denied, first, content = "the agent ended the stream", False, True, True
        stream = call()
        try:
            async for message in stream:
                pause_s = FIRST_PAUSE_S
                content = take(message, first)
                first = False
                if not content:
                    break
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            denied = error.code() is grpc.StatusCode.PERMISSION_DENIED
        finally:
            stream.cancel()
        if not content:
            continue
        _log.debug("%s: %s; asking again in %.2g s", what, reason, pause_s)
        fail(f"{what}: {reason}", denied)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _reason(error: grpc.aio.AioRpcError) -> str:
    if unreached := _UNREACHED.search(error.details() or ""):
        forbidden = unreached[1] == os.strerror(errno.EACCES)
        mend = "run as a user who may open the socket" if forbidden else "is the agent up, and its socket at this path?"
        return f"unavailable: {unreached[1]}: {mend}"
    reason = reason_of(error)
    return reason + next((mend for said, mend in _MENDS.items() if said in reason), "")
