"""Workloads, services and policies to and from the bytes of `istio.workload` and `istio.security`.

Decoding follows Istio's ztunnel: the same defaults, the same refusals in the same words, the same silences (an address that
cannot be read is dropped from a policy's list, unless the policy would then allow more; a port keeps its low 16 bits).
Encoding is deterministic, so equal values make equal bytes and versions, and leaves out what is a default on the wire. What
weft adds travels as extensions.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from mesh.delta import Resource
from mesh.resources.address import ADDRESS_TYPE, POLICY_SOURCES, decode_address, encode_service, encode_workload
from mesh.resources.authorization import AUTHORIZATION_TYPE, decode_authorization, encode_policy

__all__ = [
    "ADDRESS_TYPE",
    "AUTHORIZATION_TYPE",
    "POLICY_SOURCES",
    "decode_address",
    "decode_all",
    "decode_authorization",
    "encode_policy",
    "encode_service",
    "encode_workload",
]

_T = TypeVar("_T")


def decode_all(resources: Iterable[Resource], decode: Callable[[Resource], _T]) -> tuple[list[_T], dict[str, str]]:
    """Decode what can be decoded of a response, and say why the rest cannot: name -> reason."""
    decoded, refused = [], {}
    for resource in resources:
        try:
            decoded.append(decode(resource))
        except ValueError as error:
            refused[resource.name] = str(error)
    return decoded, refused
