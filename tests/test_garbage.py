"""What the collector comes to in the midst of a test is another's."""

import asyncio
import gc
import logging

import pytest

pytestmark = pytest.mark.unit


async def failing() -> None:
    raise KeyError("who")


async def leaving() -> None:
    left: list[object] = [asyncio.ensure_future(failing())]
    left.append(left)
    await asyncio.sleep(0)


def test_what_asyncio_says_of_garbage_is_not_what_a_test_logs(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(leaving())
    gc.collect()
    logging.getLogger("asyncio").error("Exception in callback")
    assert caplog.messages == ["Exception in callback"]
