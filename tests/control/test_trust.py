"""The roots in force over years, by a clock that tests turn: rotation begins by itself, and outlives restarts."""

import asyncio
from pathlib import Path

import pytest

from control.rotation import ROTATE_BEFORE, Phase
from control.trust import Trust
from tests.control.conftest import DEADLINE_S

pytestmark = pytest.mark.unit

DAY_S = 86400


class Clock:
    """The wall clock."""

    def __init__(self) -> None:
        self.now = 1_767_225_600.0

    def __call__(self) -> float:
        return self.now


def make(folder: Path, clock: Clock) -> Trust:
    return Trust(folder, "cluster.local", DAY_S, clock)


def test_a_root_near_its_end_is_replaced_by_itself_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    clock = Clock()
    trust = make(tmp_path, clock)
    old = trust.signer.certificate
    trust.granted(5 * DAY_S)
    trust.step()
    assert trust.roots.phase is Phase.STEADY
    clock.now = old.not_valid_after_utc.timestamp() - ROTATE_BEFORE.total_seconds() + 1
    trust.granted(2 * DAY_S)
    trust.granted(3600)
    trust.step()
    assert trust.roots.phase is Phase.ANNOUNCED and trust.signer.certificate == old
    overlap_s = (trust.roots.next_at_s or 0) - clock.now
    assert 2 * DAY_S <= overlap_s <= 2.2 * DAY_S, "as long as any certificate is valid that was issued"
    trust = make(tmp_path, clock)
    clock.now += overlap_s
    trust.step()
    assert trust.roots.phase is Phase.SIGNING and trust.signer.certificate != old
    assert make(tmp_path, clock).bundle_pem == trust.bundle_pem and trust.bundle_pem.count("BEGIN") == 2
    clock.now += overlap_s
    trust.step()
    assert trust.roots.phase is Phase.STEADY and trust.bundle_pem == trust.signer.root_pem
    assert make(tmp_path, clock).roots.expired_s == trust.roots.expired_s > 0


def test_a_rotation_that_is_asked_for_moves_on_while_control_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        trust = Trust(tmp_path, "cluster.local", 60)
        running = asyncio.ensure_future(trust.follow())
        await asyncio.sleep(0)  # it waits for a minute now
        with pytest.raises(ValueError, match="an overlap of 15552001 s"):
            trust.rotate(180 * DAY_S + 1)
        trust.rotate(1)
        async with asyncio.timeout(DEADLINE_S):
            while trust.roots.crossed == () or trust.roots.phase is not Phase.STEADY:  # noqa: ASYNC110  as it is asked
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


def test_a_successor_that_cannot_be_written_is_not_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = make(tmp_path, Clock())
    before = trust.roots

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("control.trust.save_roots", full)
    with pytest.raises(OSError, match="No space left"):
        trust.rotate()
    assert trust.roots is before
