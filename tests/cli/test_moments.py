"""Times as people write them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.moments import parse_duration, parse_moment, span

pytestmark = pytest.mark.unit
_NOW = datetime(2026, 3, 5, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5m", _NOW - timedelta(minutes=5)),
        ("1h30m", _NOW - timedelta(minutes=90)),
        ("1.5s", _NOW - timedelta(seconds=1.5)),
        ("-5m", _NOW + timedelta(minutes=5)),
        ("2026-03-05", datetime(2026, 3, 5, tzinfo=UTC)),
        ("2026-03-05T08Z", datetime(2026, 3, 5, 8, tzinfo=UTC)),
        ("2026-03-05T08:04:00", datetime(2026, 3, 5, 8, 4, tzinfo=UTC)),
        ("2026-03-05T08:04:00.25Z", datetime(2026, 3, 5, 8, 4, 0, 250000, tzinfo=UTC)),
        ("2026-03-05T08:04:00+02:00", datetime(2026, 3, 5, 6, 4, tzinfo=UTC)),
        ("Thu, 05 Mar 2026 08:04:00 +0000", datetime(2026, 3, 5, 8, 4, tzinfo=UTC)),
    ],
)
def test_moments(text: str, expected: datetime) -> None:
    assert parse_moment(text, _NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1d", "yesterday", "", "5", "m", "2026-13-01", "08:00", "9" * 40 + "h", "99999999h", "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00", "Mon, 01 Jan 0001 00:00:00 +1400",
    ],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_moment(text, _NOW)


@given(st.text())
def test_any_text_gives_a_moment_or_a_reason(text: str) -> None:
    try:
        assert parse_moment(text, _NOW).tzinfo is not None
    except ValueError as error:
        assert str(error)


def test_durations() -> None:
    assert parse_duration("1m0.5s") == timedelta(seconds=60.5)
    assert [span(seconds) for seconds in (0, 59, 302, 3600, 90000, -5)] == ["0s", "59s", "5m2s", "1h", "1d1h", "0s"]
