"""Ports for connections that bear a client's address: not those that the client's own kernel gives out first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.world import VIP, run, world
from wire.netns import port_bounds
from ztunnel.source_ports import SourcePorts, reserved_ports

unit = pytest.mark.unit
PORTS = st.integers(1, 65535)


@unit
@given(PORTS, PORTS, st.floats(0, 1, exclude_max=True))
def test_ports_are_of_the_other_parity_each_once_before_the_first_comes_again(one: int, other: int, chance: float) -> None:
    low, high = min(one, other), max(one, other)
    ports = SourcePorts((low, high), frozenset(), chance)
    count = (high - low + 1) // 2
    taken = [ports.take() for _ in range(min(count, 500))]
    assert len(set(taken)) == len(taken)
    assert all(low < port <= high and (port - low) % 2 == 1 for port in taken)
    if count <= 500:
        assert [ports.take() for _ in range(count)] == taken
    if not count:
        assert ports.take() == 0


@unit
def test_reserved_ports_are_left_to_who_reserved_them() -> None:
    ports = SourcePorts((40000, 40005), frozenset({40003}), 0.0)
    assert [ports.take() for _ in range(4)] == [40001, 0, 40005, 40001]


@unit
def test_three_clashes_in_a_row_leave_the_choice_to_the_kernel_for_a_while() -> None:
    ports = SourcePorts((40000, 41000), frozenset(), 0.0)
    for _ in range(2):
        ports.take()
        ports.clash()
    assert ports.take()
    assert ports.take(), "the one before was not in use"
    for _ in range(3):
        assert ports.take()
        ports.clash()
    assert not any(ports.take() for _ in range(256))
    assert ports.take()


@unit
@pytest.mark.parametrize("text", ["", "1", "a b", "60000 40000", "0 5", "1 70000"])
def test_a_range_that_cannot_be_is_the_kernels_own(text: str) -> None:
    assert port_bounds(text) == (32768, 60999)


@unit
@given(st.text(max_size=40))
def test_whatever_is_reserved_is_read_within_bounds(text: str) -> None:
    assert all(0 <= port <= 65535 for port in reserved_ports(text))


@unit
def test_the_kernels_own_words_are_read() -> None:
    assert port_bounds("1024\t65535\n") == (1024, 65535)
    assert reserved_ports("8080,9148-9150\n") == {8080, 9148, 9149, 9150}
    assert reserved_ports("\n") == frozenset()


@pytest.mark.kernel
def test_an_application_is_dialled_from_ports_that_its_client_does_not_use_until_there_are_no_others() -> None:
    with world("ports") as mesh:
        run("ip", "netns", "exec", mesh.server.netns, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40007")
        mesh.start()
        with mesh.server.listen(8080) as listener:
            seen = []
            for _ in range(8):
                mesh.client.connect(VIP, 80)
                server, (_, port) = listener.accept()
                mesh.server.sockets.append(server)
                seen.append(port)
        assert sorted(seen) == list(range(40000, 40008))
        assert all(port % 2 for port in seen[:4]), seen
        mesh.reset_sockets()
