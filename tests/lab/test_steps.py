import asyncio
import threading

import pytest

from lab.steps import to_its_end

pytestmark = pytest.mark.unit


def test_a_step_gives_its_result_or_its_error() -> None:
    assert asyncio.run(to_its_end(max, 1, 2)) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(to_its_end(int, "x"))


def test_cancelling_waits_for_the_step() -> None:
    entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def step() -> None:
        entered.set()
        go_on.wait(60)
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(to_its_end(step))
        await asyncio.to_thread(entered.wait, 60)
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())
