"""Log levels as operators write them: `info`, `debug,access=off`, also with Rust's `a::scope:level`."""

import logging
from collections.abc import Callable
from enum import IntEnum

from ztunnel.log_lines import apply_levels


class Level(IntEnum):
    """How much is logged; the numbers are logging's."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    OFF = 100


_NAMES = {
    "error": Level.ERROR,
    "warn": Level.WARN,
    "info": Level.INFO,
    "debug": Level.DEBUG,
    "trace": Level.DEBUG,
    "off": Level.OFF,
}
ACCESS = "access"
MAX_SCOPES = 100
"""With levels of their own; every worker is told all of them."""


class LogLevels:
    """The levels in force, and those of the start."""

    def __init__(self, text: str, set_access: Callable[[Level], None]) -> None:
        """Raises: ValueError for what is no level."""
        self._set_access = set_access
        self.on_change: Callable[[], None] = lambda: None
        """Hears when levels have changed."""
        self._first = text
        self._default = Level.INFO
        self._scopes: dict[str, Level] = {}
        self.set(text)

    @property
    def text(self) -> str:
        """What is in force, as it could be written."""
        scopes = (f"{scope}={level.name.lower()}" for scope, level in self._scopes.items())
        return ",".join((self._default.name.lower(), *scopes))

    @property
    def levels(self) -> dict[str, int]:
        """What is in force, by scope; of all others under the empty name."""
        return {"": int(self._default)} | {scope: int(level) for scope, level in self._scopes.items() if scope != ACCESS}

    def set(self, text: str) -> None:
        """Set the default level, levels of single scopes, or both; others stay. Raises: ValueError, and nothing changed."""
        default, scopes = read_levels(text)
        if len(self._scopes | scopes) > MAX_SCOPES:
            raise ValueError(f"log levels of more than {MAX_SCOPES} scopes: reset them")
        self._default = self._default if default is None else default
        self._scopes |= scopes
        self._apply()

    def reset(self, text: str = "") -> None:
        """Go back to the levels of the start, and from there to others. Raises: ValueError, and nothing changed."""
        default, scopes = read_levels(self._first)
        other, others = read_levels(text) if text else (None, {})
        forgotten = self._scopes.keys() - scopes.keys() - others.keys()
        self._default = other if other is not None else default if default is not None else Level.INFO
        self._scopes = scopes | others
        apply_levels(dict.fromkeys(forgotten, logging.NOTSET))
        self._apply()

    def _apply(self) -> None:
        apply_levels(self.levels)
        self._set_access(self._scopes.get(ACCESS, self._default))
        self.on_change()


def read_levels(text: str) -> tuple[Level | None, dict[str, Level]]:
    """The default level, if it is said, and levels by scope. Raises: ValueError for what is no level."""
    default: Level | None = None
    scopes: dict[str, Level] = {}
    for part in filter(None, (part.strip() for part in text.replace("::", ".").replace(":", "=").split(","))):
        scope, _, name = part.rpartition("=")
        if name.lower() not in _NAMES:
            raise ValueError(f"log level {name!r}: write one of {', '.join(_NAMES)}, or SCOPE=LEVEL")
        if scope:
            scopes[scope] = _NAMES[name.lower()]
        else:
            default = _NAMES[name.lower()]
    if default is None and not scopes:
        raise ValueError(f"log level {text!r}: write one of {', '.join(_NAMES)}, or SCOPE=LEVEL")
    return default, scopes
