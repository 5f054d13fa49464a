"""Who is shown out when too many come at once."""

from ipaddress import ip_address

import pytest

from mesh.workload import Address
from ztunnel.handshakes import PER_SOURCE, Bound, Handshakes
from ztunnel.tuning import HANDSHAKE_S

pytestmark = pytest.mark.unit

FLOODER, GOOD = ip_address("10.0.0.1"), ip_address("fd00::2")
TOTAL, PER_POD = 512, 300


class Door:
    """Handshakes by number, as tunnels make and end them."""

    def __init__(self) -> None:
        self.flight = Handshakes(TOTAL)
        self.out: list[int] = []
        self.bounds: list[Bound] = []
        self._next = 0

    def come(self, source: Address, now: float = 0.0, pod: str = "far") -> int:
        number = self._next
        self._next += 1

        def expire() -> None:
            self.out.append(number)
            self.flight.discard(number)

        if (bound := self.flight.make_room(source, pod, PER_POD)) is not None:
            self.bounds.append(bound)
        self.flight.add(number, now, expire)
        self.flight.belongs(number, source, pod)
        return number


def test_a_flooder_loses_its_own_oldest() -> None:
    door = Door()
    good = door.come(GOOD)
    flood = [door.come(FLOODER) for _ in range(PER_SOURCE + 3)]
    assert door.out == flood[:3] and len(door.flight) == PER_SOURCE + 1 and door.bounds == ["source"] * 3
    door.flight.discard(good)
    door.flight.discard(flood[-1])
    door.come(FLOODER)
    assert door.out == flood[:3], "who has finished counts no more"


def test_a_pod_that_many_want_loses_its_own_oldest() -> None:
    door = Door()
    other = door.come(GOOD, pod="other")
    numbers = [door.come(ip_address(0x0A000000 + host)) for host in range(PER_POD + 2)]
    assert door.out == numbers[:2] and door.bounds == ["pod"] * 2 and other not in door.out
    assert door.flight.count("far") == PER_POD and door.flight.count("other") == 1


def test_many_sources_together_lose_the_oldest_of_all() -> None:
    door = Door()
    numbers = [door.come(ip_address(0x0A000000 + host), pod=f"pod-{host}") for host in range(TOTAL + 2)]
    assert door.out == numbers[:2] and len(door.flight) == TOTAL and door.bounds == ["node"] * 2


def test_time_passes_and_nothing_is_remembered() -> None:
    door = Door()
    numbers = [door.come(FLOODER, now=5.0) for _ in range(3)]
    door.flight.expire(5.0 + HANDSHAKE_S - 0.1)
    assert not door.out
    door.flight.expire(5.0 + HANDSHAKE_S)
    assert door.out == numbers and not door.flight._of and not door.flight._keys
