"""What workloads, services and policies are read with: enumerations, addresses, ports."""

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import TypeVar

from mesh.manifests.cursor import Cursor
from mesh.workload import GatewayAddress, NamespacedHostname, Network, NetworkAddress

_T = TypeVar("_T")


def finish(cursor: Cursor, name: str) -> None:
    """End the reading of an object: a key that is left over is a mistake, which the known keys explain."""
    cursor.finish(unknown=f"{name} has no such key: it has {', '.join(cursor.known)}")


def pick(cursor: Cursor, key: str, words: Mapping[str, _T], default: str) -> _T:
    """Take one of several words, for what it means; without a default there must be one."""
    found = cursor.choice(key, words, default)
    return words[found] if found in words else next(iter(words.values()))  # refused, and the rest is looked at all the same


def parsed(cursor: Cursor, key: str, parse: Callable[[str], _T]) -> tuple[_T, ...]:
    """Take a list of texts that are parsed; ValueError's text is the mistake."""
    return tuple(map(parse, cursor.texts(key, check=parse)))


def network_address(text: str) -> NetworkAddress:
    """Read `NETWORK/ADDRESS`; the network may be empty, its slash stays. Raises: ValueError."""
    network, slash, address = text.rpartition("/")
    if not slash:
        raise ValueError(f"{text!r} is no address: write NETWORK/ADDRESS, for the network without a name /ADDRESS")
    return NetworkAddress(network, ip_address(address))


def network_of(text: str) -> Network:
    """Read `ADDRESS/LENGTH`, or an address. Raises: ValueError."""
    return ip_network(text, strict=False)


def gateway(cursor: Cursor | None) -> GatewayAddress | None:
    """Read `{destination: NETWORK/ADDRESS or NAMESPACE/HOSTNAME, hboneMtlsPort: PORT}`."""
    if cursor is None:
        return None
    text = cursor.text("destination", "/", check=_check_destination, required=True)
    port = cursor.number("hboneMtlsPort", 0, 65535, 15008)
    finish(cursor, "a gateway")
    return GatewayAddress(_destination(text), port)


def _check_destination(text: str) -> None:
    if "/" not in text:
        raise ValueError(f"{text!r} is no destination: write NAMESPACE/HOSTNAME or NETWORK/ADDRESS")


def _destination(text: str) -> NamespacedHostname | NetworkAddress:
    try:
        return network_address(text)
    except ValueError:
        namespace, _, hostname = text.partition("/")
        return NamespacedHostname(namespace, hostname)


def ports(cursor: Cursor | None) -> dict[int, int]:
    """Read a mapping of service ports to target ports; 0 is a port that has a name there."""
    if cursor is None:
        return {}
    found = {}
    for key in cursor.keys:
        target = cursor.number(key, 0, 65535)
        if key.isascii() and key.isdigit() and len(key) <= 5 and int(key) < 65536:
            found[int(key)] = target
        else:
            cursor.refuse(key, "no port: write a number up to 65535")
    return found
