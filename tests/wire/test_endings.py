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
    await asyncio.wait_for(told.wait(), 30)
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


def test_of_several_that_came_early_the_first_is_told() -> None:
    """By it the process says how it ended. The later number comes later, whenever it is that the two are looked at."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        said = process.stdout.readlines()
    assert said == ["listens\n", f"first {int(signal.SIGINT)}\n"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_was_started_in_a_shells_background_can_be_ended(number: signal.Signals) -> None:
    """A shell without job control has it ignore SIGINT; whoever sends one to it means it all the same."""
    pipe = subprocess.PIPE
    ignoring = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)"
    with subprocess.Popen([sys.executable, "-c", ignoring + _PROGRAM], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "listens\n"
        process.send_signal(number)
        said = process.stdout.readlines()
    assert said == [f"second {int(number)}\n"]


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
