"""The image's scripts: what can be checked without making an image."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
_FOLDER = Path(__file__).parents[2] / "daemonset"


@pytest.mark.parametrize("name", ["image.sh", "prove.sh", "headers.sh"])
def test_scripts_are_scripts(name: str) -> None:
    script = _FOLDER / name
    shell = script.read_text().split("\n", 1)[0].rpartition("/")[2].split(" ")[-1]
    assert script.stat().st_mode & 0o111
    assert subprocess.run([shell, "-n", str(script)], timeout=10).returncode == 0
