"""How control logs: of what clients say, too."""

import logging
import sys

from mesh.line import one_line


class _Formatter(logging.Formatter):
    """A message is one line whatever it holds, and a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


def log_to_stderr() -> None:
    """Begin to log, from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
