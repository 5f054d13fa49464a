"""Without descriptors a server says so, with the mend, and not a hundred times."""

import asyncio
import errno
import os

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
