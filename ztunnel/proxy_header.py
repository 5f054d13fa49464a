"""The PROXY protocol's header, version 2: tells an application that serves many who its client is and whom it meant.

Source: HAProxy's proxy-protocol.txt 2.2; facts of Istio's ztunnel, section 5.3, for the TLV that carries the SPIFFE id.
"""

import struct

from mesh.identity import Identity
from ztunnel.ledger import SocketAddress

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY_V2 = 0x21
_STREAM = 0x01
_FAMILIES = {4: 0x10, 6: 0x20}
_IDENTITY_TLV = 0xD0


def proxy_header(source: SocketAddress, target: SocketAddress, identity: Identity) -> bytes:
    """The header for one connection; addresses of two families cannot be said, and are left out."""
    family = _FAMILIES[source[0].version] if source[0].version == target[0].version else 0
    addresses = source[0].packed + target[0].packed + struct.pack("!HH", source[1], target[1]) if family else b""
    name = str(identity).encode("ascii")
    body = addresses + struct.pack("!BH", _IDENTITY_TLV, len(name)) + name
    return _SIGNATURE + struct.pack("!BBH", _PROXY_V2, family | _STREAM, len(body)) + body
