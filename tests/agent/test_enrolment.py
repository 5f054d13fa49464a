"""Enrolment where what it rests on fails at the wrong moment; with a machine that is scripted, as no disk fails on cue."""

import asyncio
import os
import socket
import threading
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from agent import enrolment
from agent.enrolment import Enrolment, EnrolmentFailed
from agent.hands import Found, Hands, Place
from agent.plan import Layer
from agent.pod import Pod, PodRequest
from agent.records import Record, Records
from agent.zds_messages import Announcement
from bpf.redirect import Enrolled, PodRedirect, Redirect
from bpf.sock_destroy import Connection, State
from mesh.workload import Address

pytestmark = pytest.mark.unit

REQUEST = PodRequest("uid-1", "demo", "web", "web", "/run/netns/web")
POD = Pod(REQUEST, (4, 1), 7, "boot")


SERVED = Connection(ip_address("::"), 8080, ip_address("::"), 0, State.LISTEN, 0, socket.AF_INET6, 1)


def from_client(port: int, mark: int = 0, state: State = State.ESTABLISHED) -> Connection:
    """A connection to the pod."""
    return Connection(ip_address("10.0.0.2"), 8080, ip_address("10.0.0.3"), port, state, 0, socket.AF_INET, 2, mark=mark)


class FullDisk:
    """Hands of a node whose disk takes no record, and says so when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Event(), threading.Event()
        self.ends = socket.socketpair()

    def locate(self, request: PodRequest) -> tuple[Pod, Place]:
        """Every namespace is there."""
        return POD, Place(os.open("/dev/null", os.O_RDONLY), cast(Any, self.ends[0]))

    def is_alive(self, pod: Pod) -> bool:
        """None has gone."""
        return True

    def add(self, layer: Layer, pod: Pod, netns_fd: int) -> None:
        """Nothing is written."""
        self.asked.set()
        assert self.let.wait(30)
        raise OSError(28, "No space left on device")

    def steered(self) -> frozenset[str]:
        """None is captured."""
        return frozenset()


async def withdrawn_while_its_record_is_refused() -> None:
    hands = FullDisk()
    made = Enrolment(cast(Hands, hands), lambda pod, entered: None)
    running = asyncio.create_task(made.run())
    adding = asyncio.create_task(made.add(REQUEST))
    await asyncio.to_thread(hands.asked.wait, 30)
    removing = asyncio.create_task(made.remove(REQUEST.uid))
    await asyncio.sleep(0)  # it has said that it wants no such pod, and waits for its turn
    assert not made.pods()
    hands.let.set()
    with pytest.raises(EnrolmentFailed, match="withdrawn meanwhile"):
        await adding
    await removing
    assert not running.done() and made.pending_reason(REQUEST.uid) == "the proxy was not told yet"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    hands.ends[1].close()


def test_a_pod_that_goes_while_its_record_is_refused_costs_nobody_else_anything() -> None:
    asyncio.run(withdrawn_while_its_record_is_refused())


class Machine:
    """Hands, and the proxy, of a node that does what it is told, once it no longer fails; what was asked of it, in order."""

    def __init__(self, found: Found, fails: bool = False) -> None:
        self.found, self.fails = found, fails
        self.done: list[tuple[object, ...]] = []
        self.places: list[Place] = []

    def locate(self, request: PodRequest) -> tuple[Pod, Place]:
        """Every namespace is there."""
        here, there = socket.socketpair()
        there.close()
        self.places.append(Place(os.open("/dev/null", os.O_RDONLY), cast(Any, here)))
        return POD, self.places[-1]

    def find_all(self) -> Found:
        """What an earlier agent left."""
        return self.found

    def forget(self, uid: str, kept: int = 0) -> None:
        """Withdrawn without a record."""
        if self.fails:
            raise OSError(5, "Input/output error")
        self.done.append(("forget", uid, kept))

    def add(self, layer: Layer, pod: Pod, netns_fd: int) -> None:
        """It is made."""
        self.done.append(("add", layer))

    def steered(self) -> frozenset[str]:
        """Nobody detached anything."""
        return frozenset({POD.uid})

    def remove(self, layer: Layer, pod: Pod, netns_fd: int | None) -> None:
        """It is taken away."""
        self.done.append(("remove", layer))

    def is_alive(self, pod: Pod) -> bool:
        """None has gone."""
        return True


class Willing:
    """A proxy that serves whom it is told of."""

    def __init__(self, done: list[tuple[object, ...]]) -> None:
        self.done = done

    async def add(self, pod: Announcement) -> None:
        """It does."""

    async def delete(self, uid: str) -> None:
        """It does no more."""
        self.done.append(("delete", uid))


def stray(uid: str, cookie: int, steered: bool) -> Enrolled:
    return Enrolled(PodRedirect(uid, cookie, (), True), steered)


def adopted(machine: Machine) -> Enrolment:
    enrolment = Enrolment(cast(Hands, machine), lambda pod, entered: None)
    enrolment.proxy = Willing(machine.done)
    return enrolment


def test_a_stray_whose_withdrawal_fails_is_a_stray_still() -> None:
    async def scenario() -> None:
        machine = Machine(Found([], [], {}, [stray("uid-1", 3, True), stray("uid-2", 4, True)]), fails=True)
        enrolment = adopted(machine)
        await enrolment.adopt()
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                await enrolment.add(REQUEST)
            for uid in ("uid-1", "uid-2"):
                with pytest.raises(OSError, match="Input/output"):
                    await enrolment.remove(uid)
        assert enrolment.strays == {"uid-1", "uid-2"} and enrolment.snapshot() == ([], ["uid-1", "uid-2"])
        assert not enrolment.pods() and [place.watch.fileno() for place in machine.places] == [-1, -1]
        machine.fails = False
        await enrolment.remove("uid-2")
        await enrolment.add(REQUEST)
        assert machine.done[:3] == [("forget", "uid-2", 0), ("delete", "uid-2"), ("forget", "uid-1", 7)]
        assert ("delete", "uid-1") not in machine.done, "the proxy serves it all the while"
        assert not enrolment.strays
        assert enrolment.is_captured("uid-1")
        await enrolment.remove("uid-1")

    asyncio.run(scenario())


def test_what_is_left_of_a_pod_is_withdrawn_though_no_proxy_is_there() -> None:
    async def scenario() -> None:
        machine = Machine(Found([], [], {}, [stray("uid-1", 3, True)]))
        enrolment = adopted(machine)
        enrolment.proxy = None
        await enrolment.adopt()
        await enrolment.remove("uid-1")
        assert machine.done == [("forget", "uid-1", 0)] and not enrolment.strays

    asyncio.run(scenario())


def test_a_proxy_is_waited_for_whatever_else_fails_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.enrolment.PROXY_WAIT_S", 600)

    class NoRoom(Machine):
        """It captures no pod."""

        def add(self, layer: Layer, pod: Pod, netns_fd: int) -> None:
            if layer == "capture" and self.fails:
                raise OSError(28, "No space left on device")
            super().add(layer, pod, netns_fd)

    async def scenario() -> None:
        machine = NoRoom(Found([], [], {}, []), fails=True)
        enrolment = adopted(machine)
        enrolment.proxy = None
        adding = asyncio.create_task(enrolment.add(REQUEST))
        for _ in range(20):  # it does as much as it can: all of it is done on this one thread
            await enrolment.blocking(int)
        assert enrolment.pending_reason("uid-1") == "no proxy is connected" and not adding.done()
        machine.fails, enrolment.proxy = False, Willing(machine.done)
        await enrolment._converge("uid-1")
        await adding
        assert enrolment.is_captured("uid-1")
        await enrolment.remove("uid-1")

    asyncio.run(scenario())


def test_what_an_earlier_agent_left_without_a_record_stays_captured_and_what_was_not_captured_goes() -> None:
    async def scenario() -> None:
        machine = Machine(Found([], [], {"uid-3": "spoilt"}, [stray("uid-1", 3, True), stray("uid-2", 4, False)]))
        enrolment = adopted(machine)
        await enrolment.adopt()
        assert machine.done == [("forget", "uid-2", 0)]
        assert enrolment.snapshot() == ([], ["uid-3", "uid-1"]), "the proxy keeps them as they are"
        await enrolment.remove_all()
        assert sorted(machine.done[1:]) == [
            ("delete", "uid-1"), ("delete", "uid-3"), ("forget", "uid-1", 0), ("forget", "uid-3", 0)
        ]  # fmt: skip
        assert enrolment.snapshot() == ([], [])

    asyncio.run(scenario())


def test_a_pod_that_is_enrolled_while_a_stray_of_its_uid_is_withdrawn_is_in_the_mesh_afterwards() -> None:
    """However long the proxy takes to let go of what is left of that one: what was asked for last counts."""

    async def scenario() -> None:
        machine = Machine(Found([], [], {}, [stray("uid-1", 3, True)]))
        enrolment, free, told = adopted(machine), asyncio.Event(), list[str]()

        class Slow(Willing):
            """A proxy that lets go of a pod when it is let."""

            async def add(self, pod: Announcement) -> None:
                told.append("add")

            async def delete(self, uid: str) -> None:
                await free.wait()
                told.append("delete")

        enrolment.proxy = Slow(machine.done)
        await enrolment.adopt()
        removing, adding = (asyncio.create_task(one) for one in (enrolment.remove("uid-1"), enrolment.add(REQUEST)))
        for _ in range(20):  # each does as much as it can: all of it is done on this one thread
            await enrolment.blocking(int)
        free.set()
        await asyncio.gather(removing, adding)
        assert told == ["delete", "add"] and not enrolment.strays
        assert enrolment.is_captured("uid-1") and set(enrolment.pods()) == {"uid-1"}
        await enrolment.remove("uid-1")

    asyncio.run(scenario())


class Watch:
    """A namespace whose addresses the kernel does not tell at first."""

    def __init__(self) -> None:
        self.asked = 0

    def read(self) -> tuple[Address, ...]:
        self.asked += 1
        if self.asked == 1:
            raise OSError(12, "the kernel does not tell the addresses")
        return (ip_address("10.0.0.1"), ip_address("fd00::1"))


def test_addresses_that_could_not_be_read_are_asked_for_again(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    """The news of them came, and comes no second time."""
    monkeypatch.setattr(enrolment, "RETRY_LONGEST_S", 0.01)

    async def scenario() -> None:
        made = Enrolment(cast(Hands, FullDisk()), lambda pod, entered: None)
        made._places[POD.uid] = Place(-1, cast(Any, watch := Watch()))
        made._desired[POD.uid] = replace(POD, request=replace(REQUEST, addresses=(ip_address("10.0.0.1"),)))
        made._addresses_changed(POD.uid)
        await eventually(lambda: watch.asked == 2)
        assert made.pods()[POD.uid].request.addresses == (ip_address("10.0.0.1"), ip_address("fd00::1"))
        del made._places[POD.uid]
        made._addresses_changed(POD.uid)

    asyncio.run(scenario())


class Kernel:
    """What the programs have, and what was taken out of them."""

    def __init__(self, *has: Enrolled) -> None:
        self.has, self.withdrawn = list(has), list[tuple[str, int]]()

    def enrolled(self) -> list[Enrolled]:
        """As it is now."""
        return self.has

    def enrol(self, pod: PodRedirect, _netns_fd: int) -> None:
        """With its program attached."""
        self.has = [Enrolled(pod, True)]

    def withdraw(self, uid: str, cookie: int) -> None:
        """One less."""
        self.withdrawn.append((uid, cookie))
        self.has = [one for one in self.has if (one.pod.uid, one.pod.netns_cookie) != (uid, cookie)]


def test_a_pod_whose_record_is_of_no_use_is_withdrawn_from_wherever_the_kernel_has_it(tmp_path: Path) -> None:
    """And stays where it is enrolled anew, with what is known of its namespace."""
    records = Records(tmp_path)
    (tmp_path / "uid-2.json").write_text("spoilt")
    records.write(Record(POD, 1, sysctls=(("net.ipv4.tcp_tw_reuse", "2"),)))
    kernel = Kernel(stray("uid-1", 3, True), stray("uid-1", 7, True), stray("uid-2", 4, True))
    hands = Hands(records, cast(Redirect, kernel))
    assert set(hands.find_all().unreadable) == {"uid-2"}
    hands.forget("uid-1", 7)
    assert kernel.withdrawn == [("uid-1", 3)] and [one.pod for one in records.read()[0]] == [POD]
    hands.forget("uid-2")
    assert kernel.withdrawn[1:] == [("uid-2", 4)] and not records.read()[1]
    hands.forget("uid-1")
    assert not kernel.has and records.read() == ([], {}) and hands.record("uid-1") is None


def test_who_came_without_the_proxy_is_remembered_once_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is attached by then: that alone would say that nobody is to be looked for."""
    older, between, carried = from_client(4000), from_client(4001), from_client(4002, 0x539)
    living = [older]
    monkeypatch.setattr("agent.hands.connections", lambda *asked: [SERVED] if len(asked) == 3 else list(living))

    class Attaching(Kernel):
        def enrol(self, pod: PodRedirect, netns_fd: int) -> None:
            super().enrol(pod, netns_fd)
            living[:] = [older, between, carried]

    def refuse(_record: Record) -> None:
        raise OSError(28, "No space left on device")

    records, kernel = Records(tmp_path), Attaching()
    hands = Hands(records, cast(Redirect, kernel))
    hands.add("record", POD, -1)
    for meanwhile in (lambda: None, lambda: kernel.has.append(Enrolled(kernel.has.pop().pod, False))):
        meanwhile()
        with monkeypatch.context() as full:
            full.setattr(records, "write", refuse)
            with pytest.raises(OSError, match="No space left"):
                hands.add("capture", POD, -1)
        hands.add("capture", POD, -1)
        record = hands.record(POD.uid)
        assert record is not None and {one[3] for one in record.pre_mesh} == {4000, 4001} and record.served == (8080,)
        hands._remember(replace(record, pre_mesh=(), served=()))
    kernel.has = [Enrolled(kernel.has.pop().pod, False)]
    hands.add("register", POD, -1)  # it has other addresses, too
    assert kernel.has[0].pod.capture, "for no moment is it out of the mesh"
    hands.add("capture", POD, -1)
    record = hands.record(POD.uid)
    assert record is not None and {one[3] for one in record.pre_mesh} == {4000, 4001}


def captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *living: Connection) -> set[int]:
    """The clients' ports of what is remembered of a pod that is captured while these connections live."""
    monkeypatch.setattr("agent.hands.connections", lambda *asked: [SERVED] if len(asked) == 3 else list(living))
    hands = Hands(Records(tmp_path), cast(Redirect, Kernel()))
    hands.add("record", POD, -1)
    hands.add("capture", POD, -1)
    record = hands.record(POD.uid)
    assert record is not None
    return {one[3] for one in record.pre_mesh}


def test_what_a_proxy_carries_is_not_from_before_the_mesh_though_the_kernel_forgot_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a STRICT policy would end every tunnel. A mark of the application's own excuses nobody."""
    living = [from_client(4000), from_client(4001, 0x539), from_client(4002, 0x111), from_client(4003, 0x7)]
    assert captured(tmp_path, monkeypatch, *living) == {4000, 4003}


def test_handshakes_under_way_crowd_out_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.hands.MAX_PRE_MESH", 2)
    flood = [from_client(port, state=State.SYN_RECV) for port in range(5000, 5003)]
    assert captured(tmp_path, monkeypatch, *flood, from_client(4000)) == {4000, 5000}
