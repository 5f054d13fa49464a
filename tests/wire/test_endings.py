"""Signals that end a process: none is lost before its loop runs, and who listens last hears the others."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

_PROGRAM = """
from wire import endings
endings.remember()
print("begins", flush=True)
input()
import asyncio
async def main():
    told = asyncio.Event()
    endings.listen(lambda number: (print("first", number), told.set()))
    endings.listen(lambda number: (print("second", number), told.set()))
    print("listens", flush=True)
    await told.wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_is_heard_once_whenever_it_comes(number: signal.Signals, early: bool) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        if early:
            process.send_signal(number)
        process.stdin.write("\n")
        process.stdin.flush()
        said = [process.stdout.readline()]
        if not early:
            process.send_signal(number)
        said += process.stdout.readlines()
    assert process.returncode == 0
    assert said == ["listens\n", f"{'first' if early else 'second'} {int(number)}\n"]


def test_who_was_started_to_outlive_its_terminal_does() -> None:
    pipe = subprocess.PIPE
    command = ["nohup", sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "listens\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        said = process.stdout.readlines()
    assert said == [f"second {int(signal.SIGTERM)}\n"]
