"""Ctrl-C: whoever interrupts the demo is told what is left, and one command removes it."""

import os
import signal
import subprocess
import sys

import pytest

from lab.client import Lab
from tests.lab.world import eventually, unique_layout

pytestmark = pytest.mark.lab


def test_an_interrupted_demo_says_what_is_left_and_one_command_removes_it() -> None:
    lab = Lab(unique_layout())
    places = lab.layout.places
    names = {"WEFT_PREFIX": places.prefix, "WEFT_RUN_DIR": str(places.run), "WEFT_STATE_DIR": str(places.state)}
    command = [sys.executable, "-m", "lab.walkthrough"]
    demo = subprocess.Popen(
        command, env=os.environ | names, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        eventually(lab.running)
        os.killpg(demo.pid, signal.SIGINT)  # as a terminal does it
        out, error = demo.communicate(timeout=60)
        assert demo.returncode == 130 and "Traceback" not in error, error
        assert out.splitlines()[-1].startswith("interrupted; what is up stays up: ") and out.rstrip().endswith("weft lab down")
        eventually(lab.running)  # the daemon is nobody's child
    finally:
        demo.kill()
        assert lab.down() and not lab.down()
