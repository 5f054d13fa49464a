"""How long who offended waits, and who does not."""

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ztunnel.arrival import Arrival
from ztunnel.handshakes import Handshakes
from ztunnel.penance import Penance

pytestmark = pytest.mark.unit


def test_who_never_offended_never_waits() -> None:
    penance = Penance(0.4)
    penance.offended("attacker", None, 1.0)
    assert penance.wait_s("good", 1.0) == 0.0


def test_the_next_ones_come_one_after_the_other() -> None:
    penance = Penance(0.4)
    penance.offended("attacker", None, 1.0)
    assert [penance.wait_s("attacker", 1.0) for _ in range(3)] == pytest.approx([0.05, 0.10, 0.15])


def test_the_pause_grows_with_every_offence_up_to_a_bound() -> None:
    penance, now, waits = Penance(0.4), 1.0, []
    for _ in range(6):
        penance.offended("attacker", None, now)
        waits.append(penance.wait_s("attacker", now))
        now += 1.0
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.4, 0.4])


def test_a_crowd_comes_one_after_the_other_without_growing_pauses() -> None:
    penance = Penance(0.5)
    waits = []
    for _ in range(4):
        penance.crowds("many", 1.0)
        waits.append(penance.wait_s("many", 1.0))
    assert waits == pytest.approx([0.0, 0.01, 0.02, 0.03])
    penance.offended("many", None, 1.0)
    penance.crowds("many", 1.0)
    assert penance._sources["many"].pause_s == pytest.approx(0.0625), "an offence is not forgotten for it"
    assert penance.wait_s("good", 1.0) == 0.0


def test_it_is_forgotten() -> None:
    penance = Penance(0.4)
    penance.offended("attacker", None, 1.0)
    assert penance.wait_s("attacker", 11.5) == 0.0 and not penance._sources
    penance.offended("attacker", None, 20.0)
    assert penance.wait_s("attacker", 20.0) == pytest.approx(0.05), "the pause begins anew"


def test_a_crowd_does_not_push_the_queue_beyond_its_time() -> None:
    penance = Penance(0.4)
    penance.offended("attacker", None, 1.0)
    assert max(penance.wait_s("attacker", 1.0) for _ in range(3000)) < 10.1
    assert penance.wait_s("attacker", 11.1) == 0.0


def test_it_can_be_turned_off_and_never_remembers_without_a_bound() -> None:
    off = Penance(0.0)
    off.offended("attacker", None, 1.0)
    off.offended("attacker", "its identity", 1.0)
    assert off.wait_s("attacker", 1.0) == 0.0 and off.allowance("attacker", "its identity", 1.0) == 1.0
    penance = Penance(0.4)
    for number in range(5000):
        penance.offended(number, None, 1.0)
    assert len(penance._sources) == 4096 and penance.wait_s(4999, 1.0) > 0


def test_each_offence_halves_the_allowances_of_its_own_next_tunnels() -> None:
    penance, found = Penance(0.4), []
    for _ in range(6):
        penance.offended("here", "attacker", 1.0)
        found.append(penance.allowance("here", "attacker", 1.0))
    assert found == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16, 1 / 16]
    assert penance.allowance("here", "good", 1.0) == penance.allowance("elsewhere", "attacker", 1.0) == 1.0
    assert penance.allowance("here", "attacker", 11.5) == 1.0, "it is forgotten"
    penance.offended("here", "attacker", 11.5)
    assert penance.allowance("here", "attacker", 11.5) == 1 / 2


def test_who_proved_nothing_has_no_allowances_to_lose() -> None:
    penance = Penance(0.4)
    penance.offended("here", None, 1.0)
    assert penance.allowance("here", "good", 1.0) == 1.0


def test_however_many_come_back_few_are_kept_for_a_greeting_to_come() -> None:
    """Each speaks and goes: who would be greeted when its time for a handshake is over is kept for nothing."""
    due: list[float] = []
    loop = SimpleNamespace(now=0.0, call_at=lambda when, _: due.append(when))
    node = SimpleNamespace(loop=loop, handshakes=Handshakes(2048), penance=Penance(0.5))
    pod, source = cast("Any", SimpleNamespace(node=node, uid="pod")), ip_address("10.0.0.1")
    node.penance.offended(source, None, 0.0)
    for _ in range(1000):
        Arrival(pod, cast("Any", object()), (source, 1))._greet(cast("Any", object()))
    assert len(due) == pytest.approx(10 / 0.0625, abs=1)
