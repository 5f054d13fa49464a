"""Who hears how a connection goes that is carried: the interface above ztunnel.stream and ztunnel.passthrough."""

from typing import TYPE_CHECKING, Protocol

from ztunnel.connection_record import Flag

if TYPE_CHECKING:
    from ztunnel.stream import TunnelStream


class Owner(Protocol):
    """Who hears how a connection goes."""

    def opened(self) -> None:
        """The other end accepted: bytes can flow."""

    def declined(self, stream: "TunnelStream", untouched: bool) -> bool:
        """Nothing of it was delivered: its application is not there (503), or (`untouched`) nobody looked at it.

        Returns True when socket and bytes were taken back with `give_back`, to go another way.
        """

    def ended(self, flag: Flag, error: str) -> None:
        """It is over; an empty error means that it ended well. `sent` and `received` are final."""


class _Nobody:
    """Hears nothing."""

    def opened(self) -> None:
        """Nothing."""

    def declined(self, stream: "TunnelStream", untouched: bool) -> bool:
        """Nowhere else."""
        return False

    def ended(self, flag: Flag, error: str) -> None:
        """Nothing."""


NOBODY = _Nobody()
