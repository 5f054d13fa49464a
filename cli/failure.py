"""How the command fails: one clear line, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from cli.mend import continue_it
from cli.output import printable

_UNREACHABLE = (ConnectionRefusedError, FileNotFoundError)


class Failure(click.ClickException):
    """What went wrong with which object, and the mend: printed as one line, exit code 1."""

    exit_code = 1
    state = "down"
    """What a table says of who did not answer."""

    def __init__(self, what: str, reason: str, mend: str = "") -> None:
        super().__init__(f"{what}: {reason}" + (f"; {mend}" if mend else ""))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line on stderr."""
        warn(self.message)


class Incomplete(Failure):
    """An answer, and what it lacks."""

    def __init__(self, what: str, reason: str, mend: str, found: Any) -> None:
        super().__init__(what, reason, mend)
        self.found = found


class Forbidden(Failure):
    """Whoever asks may not open a socket: nothing is known of who serves it."""

    state = "no permission"

    def __init__(self, what: str, socket: Path) -> None:
        super().__init__(what, f"no permission to open {socket}", "run as root")


def warn(message: str) -> None:
    """Print one line for a person on stderr; stdout stays data."""
    click.echo(f"weft: {printable(' '.join(message.split()))}", err=True)


@contextmanager
def explained(what: str, socket: Path, mend: str) -> Iterator[None]:
    """Turn what can go wrong on a unix socket into a Failure about `what`.

    Raises: Failure for every OSError and timeout of the body.
    """
    try:
        yield
    except _UNREACHABLE:
        raise Failure(what, f"nobody serves {socket}", mend) from None
    except PermissionError:
        raise Forbidden(what, socket) from None
    except TimeoutError:
        raise Failure(what, f"no answer on {socket} in time", continue_it(socket) or mend) from None
    except OSError as error:
        raise Failure(what, f"{socket}: {error.strerror or error}", mend) from None
