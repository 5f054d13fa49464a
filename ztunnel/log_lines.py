"""Log lines in the two forms of Istio's ztunnel: TAB-separated text, or JSON. Connections have theirs in ztunnel.access_log."""

import logging
import sys
import time
from functools import lru_cache

from mesh.line import one_line

_NAMES = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"))
RBAC = logging.getLogger("rbac")
"""What policies decided, connection by connection."""


def stamp(unix_ns: int) -> str:
    """A moment in UTC, with microseconds."""
    seconds, rest_ns = divmod(unix_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest_ns // 1000:06}Z"


@lru_cache(16)
def _second(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))


class LogFormatter(logging.Formatter):
    """Time, level, scope, message; a message is one line whatever it holds, and a traceback follows it."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        when = stamp(round(record.created * 1_000_000) * 1000)
        level = next((name for least, name in _NAMES if record.levelno >= least), "debug")
        scope = record.name.removeprefix("ztunnel.")
        message, traceback = record.getMessage(), self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            import json  # only here: data workers go without it

            values = {"level": level, "time": when, "scope": scope, "message": message}
            return json.dumps(
                values | ({"traceback": traceback} if traceback else {}), ensure_ascii=False, separators=(",", ":")
            )
        return f"{when}\t{level}\t{scope}\t{one_line(message)}" + (f"\n{traceback}" if traceback else "")


def log_to_stderr(as_json: bool) -> None:
    """Begin to log, from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(as_json))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def apply_levels(levels: dict[str, int]) -> None:
    """Set this process's levels, by scope; the empty name is that of all others."""
    for scope, level in levels.items():
        logging.getLogger(scope or None).setLevel(level)
