"""The demo's steps, without a lab."""

from pathlib import Path

import pytest

from lab import walkthrough

pytestmark = pytest.mark.unit


def test_a_live_connection_leaves_neither_a_process_nor_a_descriptor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weft = tmp_path / "weft"
    weft.write_text("#!/bin/sh\necho '*3'\nexec sleep 1000\n")
    weft.chmod(0o755)
    monkeypatch.setattr(walkthrough, "WEFT", str(weft))
    with walkthrough.subscription() as live:
        assert live.poll() is None
    assert live.returncode is not None and live.stdout.closed
