"""Who hears how a connection goes that is carried: the interface above ztunnel.stream and ztunnel.passthrough."""

from typing import Protocol

from ztunnel.channel import Flag


class Owner(Protocol):
    """Who hears how a connection goes."""

    def opened(self) -> None:
        """The other end accepted: bytes can flow."""

    def ended(self, flag: Flag, error: str) -> None:
        """It is over; an empty error means that it ended well. `sent` and `received` are final."""


class _Nobody:
    """Hears nothing."""

    def opened(self) -> None:
        """Nothing."""

    def ended(self, flag: Flag, error: str) -> None:
        """Nothing."""


NOBODY = _Nobody()
