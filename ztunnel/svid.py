"""Certificates that a SPIRE agent pushes: what they look like, and the streams that bring them.

A document is held to the same rules as a CA's answer (`ztunnel.ca.read_chain`): the identity that was asked for, valid now,
with its own key.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from mesh.identity import Identity
from wire.grpc_reason import reason_of
from ztunnel.ca import FetchError, read_chain
from ztunnel.certificates import Certificate
from ztunnel.der import Malformed, split_elements

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FETCH_TIMEOUT_S = 10.0
MAX_BUNDLE_BYTES = 1 << 20
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def read_svid(identity: Identity, chain: Sequence[bytes], key: bytes, bundle: bytes, now: float) -> Certificate:
    """A document of an agent: chain and key in DER, roots one after the other. Raises: FetchError with what is wrong."""
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
    return read_chain(identity, private, [*pem, "".join(map(ssl.DER_cert_to_PEM_cert, roots))], now)


async def follow(
    what: str,
    call: Callable[[], "grpc.aio.UnaryStreamCall[Any, _T]"],
    take: Callable[[_T], None],
    fail: Callable[[str], None],
) -> None:
    """Read a stream for ever, and open it again when it ends: `take` gets its messages, `fail` why there are none."""
    pause_s = FIRST_PAUSE_S
    while True:
        reason = "the agent ended the stream"
        stream = call()
        try:
            async for message in stream:
                pause_s = FIRST_PAUSE_S
                take(message)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
        finally:
            stream.cancel()
        _log.info("%s: %s; asking again in %.2g s", what, reason, pause_s)
        fail(f"{what}: {reason}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
