"""The group of every handshake's key exchange: all contenders use the one that weft's OpenSSL makes weft prefer. Pure."""

import re
from typing import Literal

Group = Literal["X25519", "X25519MLKEM768"]
_HYBRID_SINCE = (3, 5)


def group_of(openssl: str) -> Group:
    """What two proxies of weft agree on; `openssl`: the version as Python names it."""
    found = re.match(r"OpenSSL (\d+)\.(\d+)", openssl)
    return "X25519MLKEM768" if found and (int(found[1]), int(found[2])) >= _HYBRID_SINCE else "X25519"
