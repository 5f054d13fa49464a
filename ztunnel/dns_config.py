"""Where pods find their DNS: Istio's metadata become addresses, or a refusal that names the mend."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ztunnel.channel import PORTS

DNS_PORT = 15053
_LOOPBACKS = (ip_address("127.0.0.1"), ip_address("::1"))


def dns_places(metadata: Mapping[str, Any], ipv6: bool) -> tuple[tuple[str, int], ...]:
    """The addresses and ports of each pod's DNS; none where DNS_CAPTURE turns it off.

    Raises: ValueError naming the variable, the reason and the mend.
    """
    if str(metadata.get("DNS_CAPTURE", "true")).lower() != "true":
        return ()
    text = str(metadata.get("DNS_PROXY_ADDR", f"localhost:{DNS_PORT}"))
    host, _, port = text.rpartition(":")
    try:
        if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError
        hosts = _LOOPBACKS if host == "localhost" else (ip_address(host.removeprefix("[").removesuffix("]")),)
    except ValueError:
        raise ValueError(
            f"ISTIO_META_DNS_PROXY_ADDR={text!r}: not an address: write localhost:{DNS_PORT} or an IP address and a port"
        ) from None
    if int(port) in PORTS:
        raise ValueError(f"ISTIO_META_DNS_PROXY_ADDR={text!r}: port {port} is the proxy's own: choose another one")
    return tuple((str(one), int(port)) for one in hosts if ipv6 or one.version == 4)
