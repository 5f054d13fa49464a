"""The forms that Kubernetes gives to names, labels and addresses. Each check raises ValueError with what was expected."""

import re
from ipaddress import IPv6Address, ip_address, ip_network

from mesh.workload import Address, Network

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[!-<>-~]+")


def dns_label(text: str) -> None:
    """A DNS-1123 label: namespaces, containers, volumes."""
    if len(text) > 63 or not _DNS_LABEL.fullmatch(text):
        raise ValueError(f"{text!r} is no DNS label: at most 63 of a-z, 0-9 and '-', with a letter or digit at both ends")


def service_name(text: str) -> None:
    """A DNS-1035 label: services."""
    if len(text) > 63 or not _DNS_1035.fullmatch(text):
        raise ValueError(f"{text!r} is no service name: at most 63 of a-z, 0-9 and '-', beginning with a letter")


def dns_subdomain(text: str) -> None:
    """A DNS-1123 subdomain: most objects."""
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise ValueError(f"{text!r} is no object name: at most 253 of a-z, 0-9, '-' and '.', each part as a DNS label")


def label_key(text: str) -> None:
    """A label's or annotation's key: `[PREFIX/]NAME`."""
    prefix, slash, name = text.rpartition("/")
    if slash:
        dns_subdomain(prefix)
    if len(name) > 63 or not _QUALIFIED.fullmatch(name):
        raise ValueError(f"{text!r} is no key: [PREFIX/]NAME, NAME at most 63 of letters, digits, '-', '_' and '.'")


def label_value(text: str) -> None:
    """A label's value, which may be empty."""
    if len(text) > 63 or (text and not _QUALIFIED.fullmatch(text)):
        raise ValueError(f"{text!r} is no label value: at most 63 of letters, digits, '-', '_' and '.'")


def port_name(text: str) -> None:
    """A port's name."""
    if len(text) > 15 or not _PORT_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no port name: at most 15 of a-z, 0-9 and single '-', with at least one letter")


def variable_name(text: str) -> None:
    """An environment variable's name."""
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"{text!r} is no name of an environment variable: printable ASCII without space and '='")


def mount_path(text: str) -> None:
    """Where a volume appears in a container."""
    if not text.startswith("/") or text == "/" or any(part in ("..", ".") for part in text.split("/")):
        raise ValueError(f"{text!r} is no mount path: an absolute path other than /, without '.' and '..'")


def address(text: str) -> Address:
    """Read an IP address."""
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address") from None
    _plain(found, text)
    return found


def network(text: str) -> Network:
    """Read a CIDR without host bits; a plain address is a network of one."""
    try:
        found = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no CIDR: {error}") from None
    _plain(found.network_address, text)
    return found


def _plain(found: Address, text: str) -> None:
    # Connections are known by their IPv4 addresses: what a policy says of these would never hold.
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        raise ValueError(f"{text!r}: write IPv4 addresses as such, {found.ipv4_mapped}")
    if isinstance(found, IPv6Address) and found.scope_id:
        raise ValueError(f"{text!r}: a zone means something on one machine only: leave %{found.scope_id} out")


def port(text: str) -> None:
    """A port that is written as text."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"{text[:40]!r} is no port: 1 to 65535")
