"""What a tunnel asks and tells the one who made it."""

from typing import TYPE_CHECKING, Protocol

from mesh.identity import Identity
from ztunnel.connection_record import Flag
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.verification import Verified

if TYPE_CHECKING:
    from ztunnel.tunnel import Tunnel


class Owner(Protocol):
    """Who made a tunnel and answers for its peer."""

    def check_peer(self, tunnel: "Tunnel", peer: Verified) -> Identity:
        """Who the peer is, by its certificate. Raises: PeerRefused."""

    def established(self, tunnel: "Tunnel") -> None:
        """The handshake is done and the peer is who it must be."""

    def requested(self, tunnel: "Tunnel", sid: int, fields: Fields) -> Stream | None:
        """A new stream of the peer; see ztunnel.flow.Owner."""

    def retired(self, tunnel: "Tunnel") -> None:
        """A stream left, or the peer wants no more of them."""

    def closed(self, tunnel: "Tunnel", flag: Flag, error: str) -> None:
        """The tunnel is gone; an empty error means that it ended well."""
