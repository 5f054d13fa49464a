"""Log levels as operators write them: `info`, `debug,access=off`, also with Rust's `scope:level`."""

import logging
from collections.abc import Callable

from ztunnel.access_log import Level

_NAMES = {
    "error": Level.ERROR,
    "warn": Level.WARN,
    "info": Level.INFO,
    "debug": Level.DEBUG,
    "trace": Level.DEBUG,
    "off": Level.OFF,
}
ACCESS = "access"


class LogLevels:
    """The levels in force, and those of the start."""

    def __init__(self, text: str, set_access: Callable[[Level], None], on_change: Callable[[], None] = lambda: None) -> None:
        """Raises: ValueError for what is no level."""
        self._set_access = set_access
        self._on_change = on_change
        self._first = self.text = text
        self._scopes: set[str] = set()
        self.set(text)

    def set(self, text: str) -> None:
        """Set the default level, levels of single scopes, or both. Raises: ValueError, and nothing changed."""
        default: Level | None = None
        scopes: dict[str, Level] = {}
        for part in filter(None, (part.strip() for part in text.replace(":", "=").split(","))):
            scope, _, name = part.rpartition("=")
            if name.lower() not in _NAMES:
                raise ValueError(f"log level {name!r}: write one of {', '.join(_NAMES)}, or SCOPE=LEVEL")
            if scope:
                scopes[scope] = _NAMES[name.lower()]
            else:
                default = _NAMES[name.lower()]
        if default is None and not scopes:
            raise ValueError(f"log level {text!r}: write one of {', '.join(_NAMES)}, or SCOPE=LEVEL")
        if default is not None:
            logging.getLogger().setLevel(default)
            self._set_access(default)
        for scope, level in scopes.items():
            if scope == ACCESS:
                self._set_access(level)
            else:
                self._scopes.add(scope)
                logging.getLogger(scope).setLevel(level)
        self.text = text
        self._on_change()

    def reset(self) -> None:
        """Go back to the levels of the start."""
        for scope in self._scopes:
            logging.getLogger(scope).setLevel(logging.NOTSET)
        self.set(self._first)
