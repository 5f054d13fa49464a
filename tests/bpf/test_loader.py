"""Loading: adopt what is there, replace what is old, and disturb nobody."""

import mmap
import os
import socket
import subprocess
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bpf import libbpf
from bpf.layout import MAPS, PORT_DNS, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND, Role
from bpf.loader import CGROUP_PROGRAMS, load, mount_bpffs, source_version
from bpf.redirect import PodRedirect
from tests.bpf.conftest import DEADLINE_S
from wire.netns import netns_cookie

pytestmark = pytest.mark.kernel


def ids(world: Any) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Numbers of maps, programs and links."""
    maps = {spec.name: libbpf.map_info(world.map(spec.name).fileno()).id for spec in MAPS}
    programs = {state.name: state.id for state in world.redirect.programs()}
    links = {}
    for program in CGROUP_PROGRAMS:
        with libbpf.open_pin(world.bpffs / "hooks" / program.name) as link:
            links[program.name] = libbpf.link_info(link.fd).id
    return maps, programs, links


def test_the_same_sources_are_adopted(world: Any) -> None:
    before = ids(world)
    loaded = load(world.bpffs, world.cgroup)
    assert (loaded.adopted, loaded.version) == (True, source_version())
    assert ids(world) == before


@pytest.mark.parametrize("outdated", ["", "listeners"])
def test_other_sources_replace_the_programs_under_traffic(
    world: Any, outbound: socket.socket, tmp_path: Path, outdated: str
) -> None:
    (world.bpffs / "version").unlink()
    (world.bpffs / "version").symlink_to("another")
    if outdated:
        replace_by_another_layout(world, outdated)
    before = ids(world)
    done, left = tmp_path / "done", tmp_path / "left"
    progress = mmap.mmap(-1, 8)  # shared with the process that dials

    def dial_on() -> list[str]:
        seen: list[str] = []
        while not done.exists():
            with socket.create_connection((f"10.9.{len(seen) % 250}.7", 80), timeout=DEADLINE_S) as sock:
                seen.append(sock.getpeername()[0])
                sock.recv(1)  # in step with the proxy: its queue is not the matter here
            progress[:] = len(seen).to_bytes(8, "little")
        return summary(seen)

    def some_more() -> None:
        enough = int.from_bytes(progress, "little") + 40
        world.becomes(lambda: int.from_bytes(progress, "little") >= enough, True)

    def fill_under_traffic() -> None:
        some_more()
        fill(world)
        some_more()

    def accept_on() -> list[str]:
        told: list[str] = []
        outbound.settimeout(0.1)
        while not left.exists():
            with suppress(TimeoutError), outbound.accept()[0] as accepted:
                told.append(socket.inet_ntoa(accepted.getsockopt(socket.IPPROTO_IP, 80, 16)[4:8]))
        return summary(told)

    def summary(addresses: list[str]) -> list[str]:
        return [str(len(addresses)), *(found for at, found in enumerate(addresses) if found != f"10.9.{at % 250}.7")][:10]

    proxy = world.begin(("a", "proxy"), accept_on)
    app = world.begin(world.pods["a"].where, dial_on)
    some_more()
    loaded = load(world.bpffs, world.cgroup, fill_under_traffic)
    some_more()
    done.touch()
    dialled = app()
    left.touch()
    assert not loaded.adopted
    assert dialled == proxy()
    assert len(dialled) == 1, "all addresses as dialled, in order"
    maps, programs, links = ids(world)
    assert {name for name, number in maps.items() if number != before[0][name]} == set(loaded.new_maps)
    assert links == before[2]
    assert not set(programs.values()) & set(before[1].values())
    assert os.readlink(world.bpffs / "version") == source_version()


def replace_by_another_layout(world: Any, name: str) -> None:
    """As an older version left it: the map of that version, under the name of ours."""
    with libbpf.create_map(libbpf.MapType.HASH, name, (8, 8), 16) as old:
        libbpf.replace_pin(old.fd, world.bpffs / "maps" / name)


def fill(world: Any) -> None:
    """As the agent does: whoever holds the proxy's listeners, here this process, is asked for them."""
    world.reopen()
    world.redirect.enrol(world.pod("a"), world.namespaces["a"])
    world.redirect.register_sockets([os.getpid()])


def test_of_a_process_only_listeners_on_a_proxys_port_in_a_pod_are_registered(world: Any) -> None:
    world.withdraw("b")
    places = [("a", PORT_OUTBOUND), ("a", PORT_INBOUND), ("a", 8080), ("b", PORT_OUTBOUND), ("node", PORT_HBONE)]
    held = [world.listen((name, "host"), port) for name, port in places]
    udp = world.at(("a", "host"), lambda: datagrams(PORT_DNS + 1))
    client = world.dial(("b", "host"), "::1", PORT_OUTBOUND)
    assert world.redirect.register_sockets([os.getpid()]) == 2
    assert world.redirect.listening(world.cookie("a")) == {PORT_OUTBOUND, PORT_INBOUND}
    assert len(list(world.map("listeners").keys())) == 2
    registered = dict(world.map("listeners").items())
    with world.listen((("c", "host")), PORT_OUTBOUND):
        assert world.redirect.register_sockets([os.getpid()]) == 0
    assert dict(world.map("listeners").items()) == registered
    for sock in (*held, udp, client):
        sock.close()
    assert world.redirect.listening(world.cookie("a")) == frozenset()


def datagrams(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    return sock


def test_a_proxys_dns_sockets_are_tagged_that_were_made_before(world: Any) -> None:
    world.withdraw("b")
    mine, elsewhere = (world.at((name, "host"), lambda: datagrams(PORT_DNS)) for name in ("a", "b"))
    stream = world.listen(("a", "host"), PORT_DNS, "127.0.0.1")
    assert world.redirect.register_sockets([os.getpid()]) == 2
    assert world.tag(mine).role == world.tag(stream).role == Role.PROXY and world.tag(elsewhere) is None
    assert world.redirect.register_sockets([os.getpid()]) == 0


def test_a_process_that_is_gone_has_no_listeners(world: Any) -> None:
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    assert world.redirect.register_sockets([gone]) == 0


def test_a_map_of_another_layout_is_replaced_alone(world: Any) -> None:
    before = ids(world)
    replace_by_another_layout(world, "bypass")
    loaded = load(world.bpffs, world.cgroup)
    assert (loaded.adopted, loaded.new_maps) == (False, ("bypass",))
    world.reopen()
    after = ids(world)[0]
    assert after.pop("bypass") != before[0].pop("bypass")
    assert after == before[0]
    with world.proxy_listener("a", PORT_OUTBOUND) as proxy:
        world.dial(world.pods["a"].where, "10.9.8.7", 80)
        proxy.accept()


def test_a_map_of_another_capacity_keeps_what_the_agent_wrote(world: Any) -> None:
    written = {name: dict(world.map(name).items()) for name in ("pods", "addresses")}
    for name in written:
        spec = next(one for one in MAPS if one.name == name)
        with libbpf.create_map(spec.type, name, spec.sizes, spec.capacity // 2) as old:
            for key, value in written[name].items():
                libbpf.Map(old).put(key, value)
            libbpf.replace_pin(old.fd, world.bpffs / "maps" / name)
    assert load(world.bpffs, world.cgroup).new_maps == ("pods", "addresses")
    world.reopen()
    assert {name: dict(world.map(name).items()) for name in written} == written


def test_what_counts_the_entries_of_a_map_begins_anew_with_it(world: Any) -> None:
    replace_by_another_layout(world, "origins")
    assert load(world.bpffs, world.cgroup).new_maps == ("usage", "origins")
    world.reopen()


def test_another_cgroup_gets_its_own_links(world: Any) -> None:
    other = world.cgroup / "other"
    other.mkdir()
    try:
        assert not load(world.bpffs, other).adopted
        assert load(world.bpffs, other).adopted
        assert not load(world.bpffs, world.cgroup).adopted
    finally:
        other.rmdir()


def test_a_failure_names_the_object(world: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/missing"):
        load(world.bpffs, tmp_path / "missing")


def test_the_link_of_a_pod_that_is_gone_keeps_no_newer_programs_out(world: Any) -> None:
    """While no agent ran, a pod ended: the kernel has cut its link, whose pin is still there."""
    world.add_namespace("gone")
    descriptor = world.namespaces.pop("gone")
    cookie = netns_cookie(descriptor, world.home)
    world.redirect.enrol(PodRedirect("uid-gone", cookie, (ip_address("10.213.0.99"),)), descriptor)
    os.close(descriptor)
    subprocess.run(["ip", "netns", "del", f"{world.prefix}-gone"], check=True)
    # The kernel removes namespaces one after the other, and waits for all processors with each.
    world.becomes(lambda: world.redirect.programs()[-1].attached, 2, patience_s=100)
    (world.bpffs / "version").unlink()
    before = ids(world)[2]
    try:
        assert not load(world.bpffs, world.cgroup).adopted
        assert ids(world)[2] == before
        assert {one.pod.uid: one.steered for one in world.redirect.enrolled()}["uid-gone"] is False
    finally:
        world.redirect.withdraw("uid-gone", cookie)


def test_a_folder_on_a_bpffs_needs_no_mount(world: Any) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    nested = world.bpffs / "nested"
    mount_bpffs(nested)
    assert nested.is_dir()
    assert Path("/proc/self/mounts").read_text() == mounts
    nested.rmdir()
