"""Log lines: the same four parts in both forms, and one line for each whatever its message holds."""

import json
import logging
import sys
from typing import Any

import pytest

from ztunnel.log_lines import LogFormatter, stamp

pytestmark = pytest.mark.unit


def record(name: str, level: int, message: str, *arguments: object, failed: Any = None) -> logging.LogRecord:
    made = logging.LogRecord(name, level, "", 0, message, arguments, failed)
    made.created = 1_790_000_000.25
    return made


@pytest.mark.parametrize(
    ("level", "shown"),
    [(logging.DEBUG, "debug"), (logging.INFO, "info"), (logging.WARNING, "warn"), (logging.ERROR, "error"), (50, "error")],
)
def test_time_level_scope_and_message(level: int, shown: str) -> None:
    one = record("ztunnel.zds", level, "pod %s", "shop/web")
    assert LogFormatter(False).format(one) == f"2026-09-21T14:13:20.250000Z\t{shown}\tzds\tpod shop/web"
    line = LogFormatter(True).format(one)
    assert list(json.loads(line).items()) == [
        ("level", shown), ("time", "2026-09-21T14:13:20.250000Z"), ("scope", "zds"), ("message", "pod shop/web"),
    ]  # fmt: skip
    assert "wire.xds" in LogFormatter(False).format(record("wire.xds", level, "x"))


def test_a_message_is_one_line_and_a_traceback_follows_it() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        one = record("x", logging.ERROR, "a\tb\nc\x1b[31m é", failed=sys.exc_info())
    first, *rest = LogFormatter(False).format(one).splitlines()
    assert first.endswith("\terror\tx\ta\\tb\\nc\\x1b[31m é") and rest[-1] == "ValueError: why"
    shown = json.loads(LogFormatter(True).format(one))
    assert shown["message"] == "a\tb\nc\x1b[31m é" and shown["traceback"].endswith("ValueError: why")


def test_a_moment_has_microseconds() -> None:
    assert stamp(1_000_000_000_000_001_999) == "2001-09-09T01:46:40.000001Z"
