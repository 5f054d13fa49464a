"""Times as people write them: durations that mean "ago", and dates, as the hubble command reads them. Pure."""

import re
from datetime import UTC, datetime, timedelta

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?(?:{_PART.pattern})+")
_RFC1123 = "%a, %d %b %Y %H:%M:%S %z"
_HOUR = re.compile(r"\d{4}-\d\d-\d\dT\d\d(?=Z|[+-])")
_MAX_TEXT = 64


def parse_duration(text: str) -> timedelta:
    """Read a Go duration: `90s`, `1h30m`, `-5m`.

    Raises: ValueError for anything else.
    """
    if len(text) > _MAX_TEXT or not _DURATION.fullmatch(text):
        raise ValueError(f"not a duration: {text!r}: write for example 30s, 5m or 1h30m")
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    try:
        return timedelta(seconds=-seconds if text.startswith("-") else seconds)
    except OverflowError:
        raise ValueError(f"duration too long: {text!r}") from None


def parse_moment(text: str, now: datetime) -> datetime:
    """Read a moment: a duration (so long before `now`) or a date; a date without a zone is UTC.

    Raises: ValueError with the forms that are understood.
    """
    if len(text) <= _MAX_TEXT and _DURATION.fullmatch(text):
        try:
            return now - parse_duration(text)
        except OverflowError:
            raise ValueError(f"out of range: {text!r}") from None
    for read in (_read_iso, _read_rfc1123):
        try:
            return read(text)
        except (ValueError, OverflowError):  # a date at the end of time, in a zone where it is beyond it
            continue
    raise ValueError(f"not a time: {text!r}: write for example 5m (ago), 2026-03-05 or 2026-03-05T08:00:00Z")


def _read_iso(text: str) -> datetime:
    if "T" not in text and len(text) != len("2026-03-05"):
        raise ValueError(text)
    # An hour alone needs its minutes before the standard library reads it.
    moment = datetime.fromisoformat(_HOUR.sub(lambda match: match.group() + ":00", text[:_MAX_TEXT]))
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_rfc1123(text: str) -> datetime:
    return datetime.strptime(text[:_MAX_TEXT], _RFC1123).astimezone(UTC)


_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def span(seconds: float) -> str:
    """A length of time in its largest unit and the one below: `3d4h`, `5m2s`, `0s`."""
    left = max(0, int(seconds))
    for index, (size, unit) in enumerate(_UNITS):
        if left >= size:
            below = left % size // _UNITS[index + 1][0] if size > 1 else 0
            return f"{left // size}{unit}" + (f"{below}{_UNITS[index + 1][1]}" if below else "")
    return "0s"
