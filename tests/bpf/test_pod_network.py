"""The settings in a pod's namespace: made, made again, taken back."""

import subprocess
from typing import Any

import pytest

from bpf import pod_network
from bpf.pod_network import _WANTED

pytestmark = pytest.mark.kernel


def rules(world: Any, name: str) -> str:
    namespace = f"{world.prefix}-{name}"
    commands = (
        ["ip", "-n", namespace, "rule"],
        ["ip", "-n", namespace, "-6", "rule"],
        ["ip", "-n", namespace, "route", "show", "table", "all"],
        ["ip", "-n", namespace, "-6", "route", "show", "table", "all"],
    )
    return "".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in commands)


def sysctls(world: Any, name: str) -> dict[str, str]:
    return {key: world.sysctl(name, key) for key in _WANTED}


def test_made_made_again_and_taken_back(world: Any) -> None:
    world.sysctl("c", "ipv4/conf/all/rp_filter", "2")
    clean = rules(world, "c"), sysctls(world, "c")
    fd = world.namespaces["c"]
    before = pod_network.prepare(fd, world.home)
    assert before.sysctls == clean[1]
    made = rules(world, "c")
    assert made.count("32764:\tfrom all fwmark 0x111/0xfff lookup 100") == 2
    assert "local default dev lo table 100 proto static scope host" in made
    assert "local default dev lo table 100 proto static metric" in made
    assert sysctls(world, "c") == _WANTED
    assert pod_network.prepare(fd, world.home).sysctls == _WANTED
    assert rules(world, "c") == made
    pod_network.restore(fd, world.home, before)
    assert (rules(world, "c"), sysctls(world, "c")) == clean
    pod_network.restore(fd, world.home, before)


def test_the_rest_of_the_namespace_is_left_alone(world: Any) -> None:
    world.ip("c", "rule add fwmark 0x222 lookup 200 pref 32700", "route add 192.0.2.0/24 dev lo table 100")
    try:
        clean = rules(world, "c")
        before = pod_network.prepare(world.namespaces["c"], world.home)
        pod_network.restore(world.namespaces["c"], world.home, before)
        assert rules(world, "c") == clean
    finally:
        world.ip("c", "rule del pref 32700", "route del 192.0.2.0/24 dev lo table 100")


@pytest.mark.parametrize("interface", ["lo", "all"])
def test_without_ipv6_only_the_other_family_is_set_up(world: Any, interface: str) -> None:
    name = f"no6-{interface}"
    world.add_namespace(name)
    world.sysctl(name, f"ipv6/conf/{interface}/disable_ipv6", "1")
    clean = rules(world, name), sysctls(world, name)
    before = pod_network.prepare(world.namespaces[name], world.home)
    made = rules(world, name)
    assert made.count("32764:\tfrom all fwmark 0x111/0xfff lookup 100") == made.count("local default dev lo table 100") == 1
    pod_network.restore(world.namespaces[name], world.home, before)
    assert (rules(world, name), sysctls(world, name)) == clean


def test_what_was_set_up_for_ipv6_goes_also_when_the_pod_gave_it_up(world: Any) -> None:
    world.add_namespace("six")
    clean = rules(world, "six")
    before = pod_network.prepare(world.namespaces["six"], world.home)
    world.sysctl("six", "ipv6/conf/all/disable_ipv6", "1")
    pod_network.restore(world.namespaces["six"], world.home, before)
    world.sysctl("six", "ipv6/conf/all/disable_ipv6", "0")
    assert rules(world, "six") == clean


def test_local_ports(world: Any) -> None:
    assert pod_network.local_ports(world.namespaces["c"], world.home) == 28232
