"""What travels, and how much of it either end keeps for the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

MAX_RESOURCES = 200_000
"""Names per type that either end keeps for a peer: 20 times the largest mesh that is aimed at."""

MAX_REASON = 4096
"""Characters of a refusal's reason that are sent or kept: room for dozens of resources, none for a flood."""

MAX_NAME = 2048
"""Characters of a name that a client asks for: several times the longest that any resource has."""

MAX_NAMES = 20_000
"""Names that a server keeps for a client that asks by name, beside those of what it holds."""


class Resource(NamedTuple):
    """One resource: the value is that of its Any, whose type is the response's."""

    name: str
    version: str
    value: bytes
    aliases: tuple[str, ...] = ()
    """Other names under which it may be asked for. They travel only to who asks by name."""
    groups: tuple[str, ...] = ()
    """What it belongs to; stays with the server. Who is given the resource of such a name is given all of its group."""


@dataclass(frozen=True, slots=True)
class Request:
    """DeltaDiscoveryRequest. Without names, nonce and error: everything of this type, please."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None
    """error_detail.message of a NACK; None for anything else."""
    initial: bool = False
    """The first of its type on its stream: carries the Node. Only a client's shell reads this."""


@dataclass(frozen=True, slots=True)
class Response:
    """DeltaDiscoveryResponse."""

    type_url: str
    resources: Sequence[Resource] = ()
    removed: tuple[str, ...] = ()
    nonce: str = ""
    by_name: bool = False
    """To a client that asks by name: aliases travel along."""
    versions: Mapping[str, str] | None = None
    """Of the resources, name -> version, where it is known without a look at each of them."""
    value_bytes: int = 0
    """Of all the resources' values."""


def version_of(value: bytes) -> str:
    """Make a version out of a value, so that equal values need not be sent twice: 16 hexadecimal digits."""
    return blake2b(value, digest_size=8).hexdigest()
