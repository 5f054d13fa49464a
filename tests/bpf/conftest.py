"""A node small enough to see through: real namespaces, cgroups and programs, and sockets made by whom the test says.

Names are unique by process id, and everything goes away with the fixture, also when setting up or a test failed.
"""

import errno
import gc
import os
import pickle
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bpf import pod_network
from bpf.events import Event
from bpf.layout import MARK_PROXY, PORT_INBOUND, PORT_OUTBOUND, Tag
from bpf.libbpf import Map
from bpf.loader import load
from bpf.redirect import PodRedirect, Redirect
from mesh.exclusions import NOTHING, Exclusions
from wire.cgroup import cgroup2_mount, cgroup_id
from wire.netns import entered, netns_cookie, open_home

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
TCP_TOTAL_RETRANSMISSIONS = 100
"""Where tcp_info has them: a u32."""
Where = tuple[str, str]  # namespace, cgroup
DEADLINE_S = 60
"""For what comes as soon as the machine has time for it."""


@dataclass(frozen=True)
class PodPlace:
    """A pod of the world."""

    name: str
    ip4: str
    ip6: str

    @property
    def where(self) -> Where:
        """Its app's place."""
        return self.name, f"pods/{self.name}"


class World:
    """One node with pods a, b (enrolled) and c (not), in namespaces named <prefix>-*."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"wt{os.getpid()}"
        self.home = open_home()
        self.bpffs = folder / "bpf"
        self.cgroup = cgroup2_mount() / self.prefix
        self.namespaces: dict[str, int] = {}
        self.pods = {
            name: PodPlace(name, f"10.213.0.{number}", f"fd13::{number}") for number, name in enumerate("abc", start=2)
        }
        self.before: dict[str, pod_network.Before] = {}
        self.redirect: Redirect
        self._looked_at: list[Map] = []

    def build(self) -> None:
        """Make all of it."""
        self.cgroup.mkdir()
        for name in ("host", "proxy", "pods", *(f"pods/{pod}" for pod in self.pods), "pods/hostnet"):
            (self.cgroup / name).mkdir(parents=True)
        self.add_namespace("node")
        self.ip("node", "link add br0 type bridge", "addr add 10.213.0.1/24 dev br0", "addr add fd13::1/64 dev br0 nodad")
        self.ip("node", "link set br0 up")
        for pod in self.pods.values():
            self.add_namespace(pod.name)
            self.sysctl(pod.name, "ipv6/conf/default/accept_dad", "0")  # its routes are all there from the start
            self.ip("node", f"link add v{pod.name} type veth peer name eth0 netns {self.prefix}-{pod.name}")
            self.ip("node", f"link set v{pod.name} master br0 up")
            self.ip(pod.name, f"addr add {pod.ip4}/24 dev eth0", f"addr add {pod.ip6}/64 dev eth0 nodad", "link set eth0 up")
            self.ip(pod.name, "route add default via 10.213.0.1", "-6 route add default via fd13::1")
        load(self.bpffs, self.cgroup)
        self.redirect = Redirect(self.bpffs)
        self.redirect.set_node(self.cookie("node"), cgroup_id(self.cgroup / "pods"))
        self.redirect.add_proxy(cgroup_id(self.cgroup / "proxy"))

    def tear_down(self) -> None:
        """Remove all of it, and processes that a failed test left in it."""
        (self.cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + DEADLINE_S
        while "populated 1" in (self.cgroup / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        for fd in (*self.namespaces.values(), self.home):
            os.close(fd)
        if hasattr(self, "redirect"):
            self.redirect.close()
        subprocess.run(["umount", str(self.bpffs)], check=False, capture_output=True)
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "del", f"{self.prefix}-{name}"], check=False, capture_output=True)
        for path in sorted(self.cgroup.glob("**/"), key=lambda path: -len(path.parts)):
            path.rmdir()

    def add_namespace(self, name: str) -> None:
        """Make a namespace, with its loopback up."""
        subprocess.run(["ip", "netns", "add", f"{self.prefix}-{name}"], check=True, timeout=DEADLINE_S)
        self.namespaces[name] = os.open(f"/run/netns/{self.prefix}-{name}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip(name, "link set lo up")

    def ip(self, name: str, *commands: str) -> None:
        """Run `ip` commands inside a namespace."""
        for command in commands:
            subprocess.run(["ip", "-n", f"{self.prefix}-{name}", *command.split()], check=True, timeout=DEADLINE_S)

    def cookie(self, name: str) -> int:
        """The cookie of a namespace."""
        return netns_cookie(self.namespaces[name], self.home)

    def entered(self, name: str) -> AbstractContextManager[None]:
        """Run the body inside a namespace, with the test's own cgroup."""
        return entered(self.namespaces[name], self.home)

    def sysctl(self, namespace: str, name: str, value: str | None = None) -> str:
        """Read, or write and read, a network sysctl of a namespace."""
        with entered(self.namespaces[namespace], self.home):
            if value is not None:
                Path("/proc/sys/net", name).write_text(value)
            return Path("/proc/sys/net", name).read_text().strip()

    def pod(self, name: str, capture: bool = True, exclusions: Exclusions = NOTHING) -> PodRedirect:
        """What the agent would say of a pod."""
        place = self.pods[name]
        addresses = (ip_address(place.ip4), ip_address(place.ip6))
        return PodRedirect(f"uid-{name}", self.cookie(name), addresses, capture, exclusions)

    def enrol(self, name: str, capture: bool = True, exclusions: Exclusions = NOTHING) -> None:
        """Enrol a pod as the agent does."""
        before = pod_network.prepare(self.namespaces[name], self.home)
        self.before.setdefault(name, before)
        self.redirect.enrol(self.pod(name, capture, exclusions), self.namespaces[name])

    def withdraw(self, name: str) -> None:
        """Withdraw a pod as the agent does."""
        self.redirect.withdraw(f"uid-{name}", self.cookie(name))
        pod_network.restore(self.namespaces[name], self.home, self.before.pop(name))

    # sockets, made by a process in the namespace and cgroup that the test names

    def at(self, where: Where, work: Callable[[], Any]) -> Any:
        """Run `work` in a process of its own at `where`. A socket comes back as a socket, an OSError is raised here."""
        return self.begin(where, work)()

    def begin(self, where: Where, work: Callable[[], Any]) -> Callable[[], Any]:
        """Begin `work`; the answer is a function that waits for its end and returns what `at` would."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            _be_child(self.namespaces[where[0]], self.cgroup / where[1], theirs, work)
        theirs.close()

        def end() -> Any:
            with ours:
                ours.settimeout(100)  # longer than it waits for anything itself
                data, ancillary, _, _ = ours.recvmsg(1 << 18, socket.CMSG_SPACE(16))
            os.waitpid(child, 0)
            answer = pickle.loads(data)
            if isinstance(answer, BaseException):
                raise answer
            for _, _, descriptors in ancillary:
                return socket.socket(fileno=int.from_bytes(descriptors[:4], "little"))
            return answer

        return end

    def listen(self, where: Where, port: int, address: str = "::", mark: int = 0) -> socket.socket:
        """A listener; `::` takes both families."""

        def work() -> socket.socket:
            sock = socket.socket(_family(address))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if address == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((address, port))
            sock.listen(64)
            return sock

        return _with_timeout(self.at(where, work))

    def dial(self, where: Where, address: str, port: int, **options: Any) -> socket.socket:
        """A connected socket (see `connected` for the options)."""
        return _with_timeout(self.at(where, lambda: connected(address, port, **options)))

    def refused_at_once(self, where: Where, address: str, port: int, **options: Any) -> bool:
        """Whether a refused connection was so by the answer to its first SYN: one of three, as a busy machine may be late."""

        def sent_again() -> int:
            with _unconnected(address, **options) as sock:
                sock.setblocking(False)
                sock.connect_ex((address, port))
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                assert poll.poll(1000 * DEADLINE_S), "neither connected nor refused"
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_TOTAL_RETRANSMISSIONS + 4)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
                return int(struct.unpack_from("=I", info, TCP_TOTAL_RETRANSMISSIONS)[0])

        return min(self.at(where, sent_again) for _ in range(3)) == 0

    def proxy_listener(self, pod: str, port: int) -> socket.socket:
        """A listener as the proxy opens it in a pod."""
        return self.listen((pod, "proxy"), port, mark=MARK_PROXY)

    # what the kernel says

    def map(self, name: str) -> Map:
        """One of the pinned maps, open until the test ends."""
        found = Map.pinned(self.bpffs / "maps" / name)
        self._looked_at.append(found)
        return found

    def close_maps(self) -> None:
        """Give back what `map` opened."""
        for one in self._looked_at:
            one.close()
        self._looked_at.clear()

    def reopen(self) -> None:
        """Open what is pinned now, in the place of what was pinned before."""
        self.redirect.close()
        self.redirect = Redirect(self.bpffs)

    def tag(self, sock: socket.socket) -> Tag | None:
        """What a socket carries."""
        raw = self.map("sockets").get(sock.fileno().to_bytes(4, "little"))
        return Tag.from_buffer_copy(raw) if raw else None

    def counted(self, before: dict[str, int]) -> dict[str, int]:
        """What was counted since `before`; without zeros, and strays: segments that crossed an end, of whichever test."""
        counters = self.redirect.counters().items()
        return {name: more for name, now in counters if (more := now - before[name]) and name != "stray"}

    def becomes(self, look: Callable[[], Any], wished: Any, patience_s: float = DEADLINE_S) -> None:
        """Wait until `look` finds it so: on a busy machine the kernel ends a connection after close() has returned."""
        deadline = time.monotonic() + patience_s
        while (found := look()) != wished:
            assert time.monotonic() < deadline, f"{found} instead of {wished}"
            time.sleep(0.002)

    def events(self, until: Callable[[list[Event]], bool] = bool, timeout: float = DEADLINE_S) -> list[Event]:
        """Events since the last call; waits until they are as wished. One for a SYN that came more than once."""
        return list({replace(event, time_ns=0): event for event in self.told(until, timeout)}.values())

    def told(self, until: Callable[[list[Event]], bool] = bool, timeout: float = DEADLINE_S) -> list[Event]:
        """The same, each as often as the kernel tells of it."""
        reader = self.redirect.open_events()
        found = reader.read()
        deadline = time.monotonic() + timeout
        while not until(found) and time.monotonic() < deadline:
            found += reader.read()
            time.sleep(0.002)
        reader.close()
        return found


def connected(address: str, port: int, timeout: float = DEADLINE_S, **options: Any) -> socket.socket:
    """Connect from the calling process; a `source` that is not its own is allowed (transparent)."""
    sock = _unconnected(address, **options)
    sock.settimeout(timeout)
    sock.connect((address, port))
    return sock


def _unconnected(
    address: str,
    mark: int = 0,
    source: str = "",
    source_port: int = 0,
    device: str = "",
    protocol: int = 0,
    family: int = 0,
) -> socket.socket:
    """What `connected` connects."""
    sock = socket.socket(family or _family(address), socket.SOCK_STREAM, protocol)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if source or source_port:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((source, source_port))
    return sock


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _with_timeout(sock: socket.socket) -> socket.socket:
    sock.settimeout(DEADLINE_S)
    return sock


def _be_child(namespace: int, cgroup: Path, channel: socket.socket, work: Callable[[], Any]) -> None:
    """Answers with what `work` returned or raised, and never returns."""
    gc.disable()  # what other tests left is not for it to finalize: threads that this may wait for are not in it
    fds: list[int] = []
    try:
        (cgroup / "cgroup.procs").write_text("0")
        here = open_home()
        with entered(namespace, here):
            answer = work()
        if isinstance(answer, socket.socket):
            fds, answer = [answer.detach()], None
    except BaseException as error:
        answer = error
    try:
        socket.send_fds(channel, [pickle.dumps(answer)], fds)
    finally:
        os._exit(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sockets of a test are closed by the end of its scope; saying so a hundred times would not make it clearer."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    try:
        made.build()
        yield made
    finally:
        made.tear_down()
        shutil.rmtree(made.bpffs, ignore_errors=True)


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    """The node with pods a and b enrolled; afterwards nothing is."""
    _world.enrol("a")
    _world.enrol("b")
    while _world.told(until=lambda _: True):
        pass  # what those before caused
    try:
        yield _world
    finally:
        for name in list(_world.before):
            _world.withdraw(name)
        _world.close_maps()


@pytest.fixture
def outbound(world: World) -> Iterator[socket.socket]:
    """The proxy's 15001 listener in pod a."""
    with world.proxy_listener("a", PORT_OUTBOUND) as listener:
        yield listener


@pytest.fixture
def inbound(world: World) -> Iterator[socket.socket]:
    """The proxy's 15006 listener in pod b."""
    with world.proxy_listener("b", PORT_INBOUND) as listener:
        yield listener


@pytest.fixture
def app(world: World) -> Iterator[socket.socket]:
    """The app's listener in pod b, port 8080."""
    with world.listen(world.pods["b"].where, 8080) as listener:
        yield listener
