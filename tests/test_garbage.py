"""What the collector comes to in the midst of a test is the test's own."""

import asyncio
import gc

import pytest

pytestmark = pytest.mark.unit


async def failing() -> None:
    raise KeyError("who")


async def leaving() -> None:
    left: list[object] = [asyncio.ensure_future(failing())]
    left.append(left)
    await asyncio.sleep(0)


@pytest.fixture
def garbage() -> None:
    """Left by who came before."""
    asyncio.run(leaving())


def test_what_asyncio_says_of_garbage_is_said_before_a_test_listens(garbage: None, caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()
    assert caplog.messages == []


def test_what_it_says_of_a_tests_own_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(leaving())
    gc.collect()
    assert [message.partition("\n")[0] for message in caplog.messages] == ["Task exception was never retrieved"]
