"""Answers that are given again: how old they may be, and what making them may cost."""

import asyncio

import pytest

from wire.seldom import FRESH_S, SHARE, Seldom

pytestmark = pytest.mark.unit


class Work:
    """What takes time to make, by a clock of its own."""

    def __init__(self, takes_s: float) -> None:
        self.now = 100.0
        self.made = 0
        self._takes_s = takes_s

    async def make(self) -> bytes:
        await asyncio.sleep(0)
        self.now += self._takes_s
        self.made += 1
        return b"%d" % self.made


@pytest.mark.parametrize(("takes_s", "fresh_s"), [(0.001, FRESH_S), (0.5, 0.5 / SHARE)])
def test_an_answer_is_given_again_for_as_long_as_its_making_is_cheap_enough(takes_s: float, fresh_s: float) -> None:
    async def scenario() -> None:
        work = Work(takes_s)
        seldom = Seldom(work.make, lambda: work.now)
        assert await asyncio.gather(*(seldom.get() for _ in range(50))) == [b"1"] * 50
        work.now += fresh_s - 0.001
        assert await seldom.get() == b"1"
        work.now += 0.002
        assert await seldom.get() == b"2"

    asyncio.run(scenario())


def test_what_cannot_be_made_is_tried_again() -> None:
    async def scenario() -> None:
        work, refused = Work(0.0), [True]

        async def make() -> bytes:
            if refused:
                raise OSError(refused.pop())
            return await work.make()

        seldom = Seldom(make, lambda: work.now)
        with pytest.raises(OSError, match="True"):
            await seldom.get()
        assert await seldom.get() == b"1"

    asyncio.run(scenario())
