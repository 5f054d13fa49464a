"""Why a connection was dropped, in the words that users of the hubble command know. Pure."""

from mesh.proto.flow_pb2 import DropReason

_PREFIXES = ("DROP_",)
_OWN_WORDS = {
    0: "Success",
    134: "Invalid packet",
    135: "CT: Truncated or invalid header",
    137: "CT: Unknown L4 protocol",
    155: "CT: Map insertion failed",
    181: "Policy denied by denylist",
    189: "Authentication required",
    195: "Traffic is unencrypted",
    202: "Host datapath not ready",
    203: "Endpoint policy program not available",
    204: "No Egress IP configured",
    205: "Punt to proxy",
}
_CAPITALS = ("IP", "IPv6", "ICMPv4", "ICMPv6", "L2", "L3", "L4", "TTL", "FIB", "NAT", "IGMP")


def drop_text(number: int) -> str:
    """The words for a drop code: 133 is `Policy denied`; a code that nobody knows is `N, 0`."""
    if number in _OWN_WORDS:
        return _OWN_WORDS[number]
    try:
        name = str(DropReason.Name(number))
    except ValueError:
        return f"{number}, 0"
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    capitals = {word.upper(): word for word in _CAPITALS}
    words = [capitals.get(word, word.lower()) for word in name.split("_")]
    return words[0][:1].upper() + words[0][1:] + "".join(f" {word}" for word in words[1:])
