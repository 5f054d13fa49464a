"""Without descriptors a server says so, with the mend, and not a hundred times; without memory it ends."""

import asyncio
import errno
import os
import subprocess
import sys

import pytest

from wire.exhaustion import say_when_none_is_left

pytestmark = pytest.mark.unit


def test_what_lacks_descriptors_is_one_line_and_all_else_is_told_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        say_when_none_is_left()
        loop, none_left = asyncio.get_running_loop(), OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        for _ in range(100):
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": none_left})
        loop.call_exception_handler({"message": "something broke", "exception": ValueError("why")})

    asyncio.run(scenario())
    said = [record.getMessage() for record in caplog.records]
    assert said == ["nobody is answered: [Errno 24] Too many open files: raise the limit (RLIMIT_NOFILE)", "something broke"]


BROKEN_OFF = """
import asyncio
import logging
from wire.exhaustion import say_when_none_is_left

def callback():
    raise MemoryError

async def main():
    say_when_none_is_left()
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(10)

logging.basicConfig(format="%(message)s")
asyncio.run(main())
"""


def test_a_callback_that_breaks_off_without_memory_is_the_end_of_its_process_in_one_line() -> None:
    """It may have stopped between two halves of a change: whoever waits for the other one would wait for ever."""
    ended = subprocess.run([sys.executable, "-c", BROKEN_OFF], capture_output=True, text=True, check=False)
    said = "no memory is left, and a change may be half done: ending; raise the limit of this process or its container\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_what_a_server_does_for_one_client_without_memory_ends_with_that_one(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        say_when_none_is_left()
        told = {"message": "Fatal error: protocol.data_received() call failed.", "exception": MemoryError()}
        asyncio.get_running_loop().call_exception_handler(told)

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["Fatal error: protocol.data_received() call failed."]
