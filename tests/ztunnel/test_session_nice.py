"""A worker's session gives way and takes it back, where the kernel groups processes by session at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel import session_nice
from ztunnel.session_nice import BEHIND

pytestmark = pytest.mark.unit

_FILE = Path("/proc/self/autogroup")
_CODE = """
import pathlib
from ztunnel.session_nice import SessionNice
file, nice = pathlib.Path("/proc/self/autogroup"), SessionNice()
for wanted in (5, 5, 0):
    nice.set(wanted)
    print(file.read_text().split()[-1] if file.exists() else "no groups")
"""


def test_a_session_gives_way_and_takes_it_back() -> None:
    command = [sys.executable, "-c", _CODE]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, start_new_session=True)
    assert said.stdout.splitlines() == (["5", "5", "0"] if _FILE.exists() else ["no groups"] * 3)


def test_where_the_kernel_does_not_take_it_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "autogroup"
    monkeypatch.setattr(session_nice, "_FILE", str(tmp_path / "none" / "autogroup"))
    nice = session_nice.SessionNice()
    nice.set(BEHIND)
    monkeypatch.setattr(session_nice, "_FILE", str(file))
    nice.set(BEHIND)
    assert file.read_text() == str(BEHIND), "it asks again"
    file.unlink()
    nice.set(BEHIND)
    assert not file.exists(), "once is enough"
