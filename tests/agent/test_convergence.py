"""How a pod's enrolment goes on when the proxy, or the machine, does not do its part: what is made, when it is tried again."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, cast

import pytest

from agent import enrolment, retries
from agent.enrolment import Enrolment, EnrolmentFailed
from agent.hands import Found, Hands, Place
from agent.plan import DOWN, Actual, Layer
from agent.pod import Pod, PodRequest
from agent.records import Record
from agent.zds_connection import NoProxy, ProxyAway
from agent.zds_messages import Announcement

pytestmark = pytest.mark.unit

REQUEST = PodRequest("uid-1", "demo", "web", "websa", "/run/netns/web", (ip_address("10.0.0.1"),))
POD = Pod(REQUEST, (4, 1), 7, "boot")
ANNOUNCED = Announcement("uid-1", "demo", "web", "websa")
LAYERS: tuple[Layer, ...] = ("record", "network", "register", "capture")


class Machine:
    """Hands that do what they are told, but for the layers that are broken; what they did, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.broken: set[Layer] = set()
        self.exhausted = False
        """They are broken by the end of memory."""
        self.found = Found([], [], {}, [])
        self.alive = self.attached = True
        self.unseen = False
        self.looks = 0
        self.pod = POD
        self.visited: list[int | None] = []
        """The namespaces in which something was taken away."""
        self.places: list[Place] = []
        self.others: list[socket.socket] = []

    def locate(self, _request: PodRequest) -> tuple[Pod, Place]:
        return self.pod, self.hold()

    def hold(self) -> Place:
        here, there = socket.socketpair()
        self.others.append(there)
        self.places.append(Place(os.open("/dev/null", os.O_RDONLY), cast(Any, here)))
        return self.places[-1]

    def find_all(self) -> Found:
        return self.found

    def add(self, layer: Layer, _pod: Pod, _netns_fd: int) -> None:
        self._do("add", layer)

    def remove(self, layer: Layer, _pod: Pod, netns_fd: int | None) -> None:
        self.visited.append(netns_fd)
        self._do("remove", layer)

    def _do(self, what: str, layer: Layer) -> None:
        if layer in self.broken:
            raise MemoryError if self.exhausted else OSError(5, f"no {layer} today")
        if (what, layer) == ("add", "capture"):
            self.attached = True
        self.done.append((what, layer))

    def is_alive(self, _pod: Pod) -> bool:
        return self.alive

    def steered(self) -> frozenset[str]:
        self.looks += 1
        if self.unseen:
            raise FileNotFoundError(2, "No such file or directory")
        return frozenset({POD.uid} if self.attached else ())


class Proxy:
    """Takes pods, unless it has a reason not to."""

    def __init__(self) -> None:
        self.reason: ProxyAway | None = None
        self.heard: list[object] = []

    async def add(self, pod: Announcement) -> None:
        self.heard.append(pod)
        if self.reason is not None:
            raise self.reason

    async def delete(self, uid: str) -> None:
        self.heard.append(uid)


class Node:
    """An enrolment with its machine and its proxy; which pods entered, and left."""

    def __init__(self) -> None:
        self.machine, self.proxy = Machine(), Proxy()
        self.changes: list[tuple[str, bool]] = []
        self.enrolment = Enrolment(cast(Hands, self.machine), lambda pod, entered: self.changes.append((pod.uid, entered)))
        self.enrolment.proxy = self.proxy

    def made(self) -> list[str]:
        return [layer for what, layer in self.machine.done if what == "add"]


@pytest.fixture
def patient() -> Iterator[Node]:
    """As it is."""
    node = Node()
    yield node
    node.enrolment._thread.shutdown()
    for place in node.machine.places:
        if place.watch.fileno() >= 0:
            place.close()
    for other in node.machine.others:
        other.close()


@pytest.fixture
def node(patient: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Where nobody waits for long."""
    for module, names in ((enrolment, ("ALIVE_INTERVAL_S", "_SNAPSHOT_GRACE_S")), (retries, ())):
        for name in ("RETRY_FIRST_S", "RETRY_LONGEST_S", *names):
            monkeypatch.setattr(module, name, 0.01)
    return patient


def running(node: Node, scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        task = asyncio.create_task(node.enrolment.run())
        await scenario()
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_pod_that_the_proxy_does_not_take_is_captured_all_the_same(node: Node, eventually: Any) -> None:
    node.proxy.reason = ProxyAway("it has no room")

    async def scenario() -> None:
        with pytest.raises(EnrolmentFailed, match=r"pod demo/web is pending: it has no room"):
            await node.enrolment.add(REQUEST)
        assert node.made() == list(LAYERS) and node.enrolment.is_captured("uid-1") and not node.changes
        assert node.enrolment.pending_reason("uid-1") == "it has no room"
        await eventually(lambda: len(node.proxy.heard) > 2)
        node.proxy.reason = None
        await eventually(lambda: node.changes)
        assert node.changes == [("uid-1", True)] and node.enrolment.pending_reason("uid-1") == ""
        assert node.made() == list(LAYERS) and set(node.proxy.heard) == {ANNOUNCED}

    running(node, scenario)


@pytest.mark.parametrize("exhausted", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_rests_on_a_layer_that_fails_waits_for_it(node: Node, eventually: Any, layer: Layer, exhausted: bool) -> None:
    node.machine.broken.add(layer)
    node.machine.exhausted = exhausted

    async def scenario() -> None:
        with pytest.raises(EnrolmentFailed, match="no memory is left: raise" if exhausted else f"no {layer} today"):
            await node.enrolment.add(REQUEST)
        assert node.made() == list(LAYERS[: LAYERS.index(layer)]) and not node.enrolment.is_captured("uid-1")
        assert bool(node.proxy.heard) == (layer == "capture")
        node.machine.broken.clear()
        await eventually(lambda: node.changes)
        place = LAYERS.index(layer)
        again = ["network"] if layer == "register" else []  # which address families there are is known of what is registered
        assert node.made() == [*LAYERS[:place], *again, *LAYERS[place:]] and node.proxy.heard == [ANNOUNCED]

    running(node, scenario)


def test_of_several_failures_the_first_is_the_reason(node: Node) -> None:
    node.proxy.reason = ProxyAway("it has no room")
    node.machine.broken.add("capture")

    async def scenario() -> None:
        with pytest.raises(EnrolmentFailed, match="it has no room"):
            await node.enrolment.add(REQUEST)

    running(node, scenario)


def test_what_an_earlier_agent_had_not_finished_is_finished_before_its_proxy_answers(node: Node) -> None:
    async def scenario() -> None:
        begun = Actual(POD, frozenset({"record", "register"}), REQUEST.addresses)
        node.machine.found = Found([(Record(POD, 1), begun, node.machine.hold())], [], {}, [])
        await node.enrolment.adopt()
        assert node.made() == ["network", "capture"] and node.proxy.heard == [] and node.enrolment.is_captured("uid-1")

    asyncio.run(scenario())


def test_an_inbound_program_that_somebody_detached_is_attached_again(
    node: Node, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing else is done: registering the pod anew would let it go for a moment."""

    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        await node.enrolment.steer_again()
        assert node.made() == list(LAYERS) and "lost" not in caplog.text
        node.machine.attached = False
        node.machine.broken.add("capture")
        await eventually(lambda: "no capture today" in node.enrolment.pending_reason("uid-1"))
        node.machine.broken.clear()
        await eventually(lambda: node.enrolment.is_captured("uid-1"))
        assert node.made() == [*LAYERS, "capture"] and node.enrolment.pending_reason("uid-1") == ""
        assert node.changes == [("uid-1", True)] * 2 and node.proxy.heard == [ANNOUNCED], "who came meanwhile is looked at"

    running(node, scenario)
    assert "pod demo/web lost its inbound program" in caplog.text


def test_an_agent_that_cannot_look_for_inbound_programs_goes_on_and_looks_again(
    node: Node, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As when somebody takes one away while it looks: it would end, and with it what captures every new pod."""

    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        for _ in range(2):
            node.machine.unseen, node.machine.looks = True, 0
            await eventually(lambda: node.machine.looks > 2)
            node.machine.unseen, node.machine.looks = False, 0
            await eventually(lambda: node.machine.looks > 1)
        node.machine.attached = False
        await eventually(lambda: node.made() == [*LAYERS, "capture"])

    running(node, scenario)
    assert caplog.text.count("No such file or directory") == 2


def test_a_pod_waits_for_a_proxy_that_is_on_its_way_and_not_for_ever(
    node: Node, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.proxy.reason = NoProxy("no proxy is connected")

    async def scenario() -> None:
        monkeypatch.setattr(enrolment, "PROXY_WAIT_S", 60.0)
        adding = asyncio.create_task(node.enrolment.add(REQUEST))
        await eventually(lambda: len(node.proxy.heard) > 2)
        assert node.enrolment.is_captured("uid-1") and not adding.done()
        node.proxy.reason = None
        await adding
        assert node.enrolment.pending_reason("uid-1") == ""
        monkeypatch.setattr(enrolment, "PROXY_WAIT_S", 0.01)
        node.enrolment.proxy = None
        node.enrolment.proxy_changed()
        with pytest.raises(EnrolmentFailed, match="is pending: no proxy is connected"):
            await node.enrolment.add(REQUEST)

    running(node, scenario)


def test_a_pod_that_a_proxy_is_just_being_told_of_waits_on_whatever_becomes_of_another(
    node: Node, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many wait for the proxy of a node that starts: the first that it takes must not end the waiting of all others."""
    monkeypatch.setattr(enrolment, "PROXY_WAIT_S", 60.0)
    node.proxy.reason = NoProxy("no proxy is connected")

    async def scenario() -> None:
        told, let = asyncio.Event(), asyncio.Event()

        async def slowly(_pod: Announcement) -> None:
            told.set()
            await let.wait()

        adding = asyncio.create_task(node.enrolment.add(REQUEST))
        await eventually(lambda: len(node.proxy.heard) > 2)
        monkeypatch.setattr(node.proxy, "add", slowly)
        await told.wait()
        await node.enrolment.remove("uid-2")
        await asyncio.sleep(0)
        let.set()
        await adding

    running(node, scenario)


def test_pods_are_found_by_what_they_are_called_now(node: Node) -> None:
    async def scenario() -> None:
        assert not node.enrolment.index().by_name
        await node.enrolment.add(REQUEST)
        assert node.enrolment.index().by_cookie == {7: POD} and node.enrolment.index() is node.enrolment.index()
        node.machine.pod = replace(POD, cookie=8)
        await node.enrolment.add(REQUEST)
        assert set(node.enrolment.index().by_cookie) == {8}
        await node.enrolment.remove("uid-1")
        assert not node.enrolment.index().by_name

    running(node, scenario)


def test_another_proxy_is_told_of_a_pod_that_its_snapshot_did_not_name(node: Node, eventually: Any) -> None:
    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        assert node.proxy.heard == [ANNOUNCED] and node.enrolment.snapshot() == ([ANNOUNCED], [])
        node.enrolment.proxy_changed()
        assert node.enrolment.pending_reason("uid-1") == "the proxy was not told yet" and node.enrolment.is_captured("uid-1")
        await eventually(lambda: node.enrolment.pending_reason("uid-1") == "")
        assert node.proxy.heard == [ANNOUNCED] * 2 and node.made() == list(LAYERS) and node.changes == [("uid-1", True)]

    running(node, scenario)


def test_what_a_proxy_answers_to_its_snapshot_counts_for_pods_that_are_registered(node: Node) -> None:
    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        node.enrolment.told("uid-1", "Bind([::]:15008)")
        node.enrolment.told("uid-2", "nobody asked")
        assert node.enrolment.pending_reason("uid-1") == "", "of a proxy before"
        node.enrolment.proxy_changed()
        node.enrolment.told("uid-1", "Bind([::]:15008)")
        assert node.enrolment.pending_reason("uid-1") == "the proxy did not take it: Bind([::]:15008)"
        node.enrolment.told("uid-1", "")
        assert node.enrolment.pending_reason("uid-1") == "" and node.enrolment.pending_reason("uid-2") != ""

    asyncio.run(scenario())


def test_a_proxy_is_told_of_a_pod_that_it_answered_for_before_the_kernel_knew_it(node: Node, eventually: Any) -> None:
    node.machine.broken.add("register")

    async def scenario() -> None:
        with pytest.raises(EnrolmentFailed, match="no register today"):
            await node.enrolment.add(REQUEST)
        node.enrolment.told("uid-1", "")
        assert not node.proxy.heard
        node.machine.broken.clear()
        await eventually(lambda: node.changes)
        assert node.proxy.heard == [ANNOUNCED]

    running(node, scenario)


def test_who_fails_again_and_again_is_tried_less_and_less_often(patient: Node) -> None:
    node = patient

    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        loop = asyncio.get_running_loop()
        for pause_s in (0.35, 0.7, 1.4, 2.8, 5.0, 5.0):
            before_s = loop.time()
            node.enrolment.told("uid-1", "no")
            assert before_s + pause_s <= node.enrolment._retries._due["uid-1"] <= loop.time() + pause_s
        await node.enrolment.add(REQUEST)
        node.enrolment.told("uid-1", "no")
        assert node.enrolment._retries._due["uid-1"] <= loop.time() + 0.35, "what worked is forgiven"

    asyncio.run(scenario())


def test_a_pod_leaves_in_order_and_again_until_it_is_out(node: Node, eventually: Any) -> None:
    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        node.machine.done.clear()
        node.machine.broken.add("network")
        with pytest.raises(EnrolmentFailed, match=r"pod demo/web is not out of the mesh yet: .*no network today"):
            await node.enrolment.remove("uid-1")
        assert node.machine.done == [("remove", "register")] and node.proxy.heard == [ANNOUNCED, "uid-1"]
        assert not node.enrolment.is_captured("uid-1") and node.enrolment.snapshot() == ([], [])
        assert node.machine.places[0].watch.fileno() >= 0, "it is held while there is something to undo in it"
        node.machine.broken.clear()
        await eventually(lambda: node.changes[1:])
        assert [layer for _, layer in node.machine.done] == [layer for layer in DOWN if layer != "announce"]
        assert node.changes == [("uid-1", True), ("uid-1", False)]
        await eventually(lambda: node.machine.places[0].watch.fileno() == -1)
        await node.enrolment.remove("uid-1")
        assert node.changes[2:] == []

    running(node, scenario)


def test_a_pod_that_is_wanted_again_before_it_is_out_is_captured_anew(node: Node) -> None:
    """A release that failed may have ended the capture all the same."""

    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        node.machine.broken.add("register")
        with pytest.raises(EnrolmentFailed, match="no register today"):
            await node.enrolment.remove("uid-1")
        assert not node.enrolment.is_captured("uid-1")
        node.machine.broken.clear()
        node.machine.done.clear()
        await node.enrolment.add(REQUEST)
        assert "capture" in node.made() and node.enrolment.is_captured("uid-1")

    asyncio.run(scenario())


def test_a_pod_that_came_back_in_another_namespace_is_withdrawn_and_enrolled_anew(node: Node, eventually: Any) -> None:
    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        node.machine.done.clear()
        node.machine.pod = replace(POD, netns_id=(4, 9), cookie=9)
        await node.enrolment.add(REQUEST)
        down, up = [layer for layer in DOWN if layer != "announce"], list(LAYERS)
        assert node.machine.done == [("remove", layer) for layer in down] + [("add", layer) for layer in up]
        assert node.machine.visited == [None] * len(down), "where it was, nobody may be sent"
        assert node.proxy.heard == [ANNOUNCED, "uid-1", ANNOUNCED] and node.changes == [("uid-1", True)]
        assert node.enrolment.netns_of("uid-1") == node.machine.places[1].netns_fd
        await eventually(lambda: node.machine.places[0].watch.fileno() == -1)
        await node.enrolment.remove("uid-1")
        assert node.machine.visited[len(down) :] == [node.machine.places[1].netns_fd] * len(down)

    running(node, scenario)


def test_a_pod_whose_namespace_is_nobodys_any_more_leaves_unasked(node: Node, eventually: Any) -> None:
    async def scenario() -> None:
        await node.enrolment.add(REQUEST)
        node.machine.alive = False
        await eventually(lambda: node.changes == [("uid-1", True), ("uid-1", False)])
        assert not node.enrolment.pods() and node.proxy.heard == [ANNOUNCED, "uid-1"]

    running(node, scenario)


def test_what_an_earlier_agent_left_goes_on_without_a_moment_out_of_the_mesh(node: Node, eventually: Any) -> None:
    gone = replace(POD, request=replace(REQUEST, uid="uid-2"), cookie=8)
    layers: frozenset[Layer] = frozenset(LAYERS)
    actual = Actual(POD, layers, REQUEST.addresses)

    async def scenario() -> None:
        left = [(Record(gone, 1), Actual(gone, layers, REQUEST.addresses))]
        node.machine.found = Found([(Record(POD, 1), actual, node.machine.hold())], left, {}, [])
        await node.enrolment.adopt()
        assert node.machine.done == [("remove", layer) for layer in DOWN if layer != "announce"]
        assert node.enrolment.pods() == {"uid-1": POD} and node.enrolment.is_captured("uid-1")
        assert node.enrolment.snapshot() == ([ANNOUNCED], []) and node.proxy.heard == []
        node.enrolment.told("uid-1", "")
        await eventually(lambda: node.changes == [("uid-1", True)])
        assert node.proxy.heard == [] and node.made() == []

    running(node, scenario)
