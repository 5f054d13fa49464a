"""What fails for a pod is tried again, later each time, until it works; what is due is taken once."""

import asyncio

import pytest

from agent.retries import RETRY_FIRST_S, RETRY_LONGEST_S, Retries

pytestmark = pytest.mark.unit


def test_pauses_grow_up_to_a_bound_and_begin_anew_when_it_has_worked() -> None:
    async def scenario() -> None:
        loop, retries = asyncio.get_running_loop(), Retries()
        for pause_s in (RETRY_FIRST_S, 0.7, 1.4, 2.8, RETRY_LONGEST_S, RETRY_LONGEST_S):
            before_s = loop.time()
            retries.failed("uid", "no")
            assert before_s + pause_s <= retries._due["uid"] <= loop.time() + pause_s
        retries.worked("uid")
        assert retries.reason("uid") == ""
        retries.failed("uid", "no")
        assert retries._due["uid"] <= loop.time() + RETRY_FIRST_S

    asyncio.run(scenario())


def test_a_reason_is_news_once() -> None:
    async def scenario() -> None:
        retries = Retries()
        assert [retries.failed("uid", why) for why in ("no", "no", "never", "no")] == [True, False, True, True]
        assert retries.reason("uid") == "no" and retries.reason("other") == ""

    asyncio.run(scenario())


def test_who_waits_hears_of_what_is_due_and_of_what_comes_before_it() -> None:
    async def scenario() -> None:
        retries = Retries()
        waiting = asyncio.ensure_future(retries.take_due())
        await asyncio.sleep(0)
        retries.schedule("late", 3600.0)
        await asyncio.sleep(0)
        assert not waiting.done()
        retries.schedule("gone", 0.0)
        retries.cancel("gone")
        retries.schedule("soon", 0.0)
        async with asyncio.timeout(60):
            assert await waiting == ["soon"]
        assert list(retries._due) == ["late"], "what was taken is not due again"

    asyncio.run(scenario())
