"""The Vagrantfile, loaded by Ruby with a recording stand-in for Vagrant: no machine is started."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit
_FOLDER = Path(__file__).parents[2] / "vagrant"


def _recorded(**environment: str) -> dict[str, Any]:
    command = ["ruby", "-W2", str(Path(__file__).with_name("record.rb")), str(_FOLDER / "Vagrantfile")]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_two_machines_of_both_debians_run_the_same_demo() -> None:
    found = _recorded()
    machines = found["config"]["machines"]
    assert [machine["values"]["box"] for machine in machines.values()] == ["debian/bookworm64", "debian/trixie64"]
    addresses = set()
    for machine in machines.values():
        calls = {name: (arguments, options) for name, arguments, options in machine["calls"] if name == "network"}
        addresses.add(calls["network"][1]["ip"])
        provisions = [options for name, _, options in machine["calls"] if name == "provision"]
        assert [one["name"] for one in provisions] == ["set-up", "demo"]
        assert (_FOLDER / provisions[0]["path"]).is_file()
        assert provisions[1]["inline"] == f"make -C {provisions[0]['args'][0]} demo"
    assert len(addresses) == 2


def test_what_is_built_here_is_not_copied() -> None:
    folders = [options for name, _, options in _recorded()["config"]["calls"] if name == "synced_folder"]
    assert folders[0] == {"disabled": True}
    assert {".venv/", "mesh/proto/*_pb2*", "mesh/proto/.generated"} <= set(folders[1]["rsync__exclude"])


def test_the_demo_can_be_left_out() -> None:
    for machine in _recorded(DEMO="0")["config"]["machines"].values():
        assert [options["name"] for name, _, options in machine["calls"] if name == "provision"] == ["set-up"]


def test_the_script_is_a_shells() -> None:
    assert subprocess.run(["sh", "-n", str(_FOLDER / "provision.sh")], timeout=60).returncode == 0
