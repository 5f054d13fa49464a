"""What dead workers lost is told piece by piece, with turns for others in between, to its end."""

import asyncio
from typing import Any

import pytest

from ztunnel.losses import Losses

pytestmark = pytest.mark.unit


class Dead:
    """Workers that died, with so many pieces to tell of."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.breaks = False

    def tell_some(self) -> bool:
        self.left -= 1
        if self.breaks:
            self.breaks = False
            raise ValueError("one that cannot be told of")
        return self.left > 0


def test_others_have_their_turn_after_each_piece_and_a_second_death_adds_to_the_first() -> None:
    async def scenario() -> None:
        dead = Dead(3)
        losses = Losses(dead.tell_some)
        losses.begin()
        assert dead.left == 3, "nothing at once"
        await asyncio.sleep(0)
        assert dead.left == 2
        dead.left += 1
        losses.begin()
        for left in (2, 1, 0, 0, 0):
            await asyncio.sleep(0)
            assert dead.left == left, "one piece a turn, and no more than there are"
        dead.left = 1
        losses.begin()
        await losses.finish()
        assert dead.left == 0

    asyncio.run(scenario())


def test_who_ends_waits_until_all_are_told_of_and_one_that_cannot_be_keeps_nobody_else(caplog: Any) -> None:
    async def scenario() -> None:
        dead = Dead(100)
        losses = Losses(dead.tell_some)
        losses.begin()
        dead.breaks = True
        await losses.finish()
        assert dead.left == 0
        await losses.finish()

    asyncio.run(scenario())
    assert "one that cannot be told of" in caplog.text
