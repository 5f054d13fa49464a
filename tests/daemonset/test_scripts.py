"""The image's scripts: what can be checked without making an image."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
_FOLDER = Path(__file__).parents[2] / "daemonset"
_STUBS = {
    "id": "echo 0",
    "dpkg-query": "exit 1",
    "apt-get": """printf '%s\\n' "$@"; [ "$1" != install ]""",
}


@pytest.mark.parametrize("name", ["image.sh", "prove.sh", "headers.sh"])
def test_scripts_are_scripts(name: str) -> None:
    script = _FOLDER / name
    shell = script.read_text().split("\n", 1)[0].rpartition("/")[2].split(" ")[-1]
    assert script.stat().st_mode & 0o111
    assert subprocess.run([shell, "-n", str(script)], timeout=60).returncode == 0


def test_the_image_is_packed_with_all_that_buildah_begins_with_on_either_debian(tmp_path: Path) -> None:
    """Nothing is installed here: apt-get says what it is asked for, and fails."""
    for name, script in _STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(_FOLDER / "image.sh"), str(tmp_path / "image")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 1 and not (tmp_path / "image").exists()
    assert {"mmdebstrap", "buildah", "netavark", "debian-archive-keyring"} <= set(run.stdout.split())
