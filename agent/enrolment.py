"""Keeps pods in the mesh: desired pods, the kernel and the proxy in step, whatever restarts or goes away.

Every pod converges on its own (see plan.py for the steps and their order): at once when the runtime, the proxy or the pod's
addresses ask for it, and again after a pause that doubles while something fails. Blocking work runs on one thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar
from weakref import WeakValueDictionary

from agent.hands import Found, Hands, Place, updated_addresses
from agent.plan import Actual, Step, after, plan, same_place, unannounced
from agent.pod import Pod, PodRequest
from agent.pod_index import PodIndex
from agent.retries import RETRY_FIRST_S, RETRY_LONGEST_S, Retries
from agent.zds_connection import NoProxy, ProxyAway
from agent.zds_messages import Announcement

ALIVE_INTERVAL_S = 2.0
PROXY_WAIT_S = 4.0
"""How long an enrolment waits for a proxy: a node's processes start together, and runtimes give up after five seconds."""
_SNAPSHOT_GRACE_S = 1.0
"""A proxy that just connected is told of every pod by its snapshot; only then does trying again make sense."""
_NO_MEMORY = "no memory is left: raise the limit of the agent or its container"
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class EnrolmentFailed(Exception):
    """The pod is not in the mesh, or not out of it, yet; the text says why. It is tried again without being asked."""


class Proxy(Protocol):
    """What enrolment asks of the proxy."""

    async def add(self, pod: Announcement) -> None:
        """Have the pod served. Raises: ProxyAway with the reason when it is not."""

    async def delete(self, uid: str) -> None:
        """Have the pod no longer served."""


class Enrolment:
    """The pods of this node."""

    def __init__(self, hands: Hands, on_change: Callable[[Pod, bool], None]) -> None:
        """`on_change` is called when a pod is wholly in the mesh (True), and when it is out of it."""
        self.hands = hands
        self.proxy: Proxy | None = None
        """Bound once, before anything is announced: the ZDS server needs this object first."""
        self._on_change = on_change
        self._thread = ThreadPoolExecutor(1, "enrolment")
        self._desired: dict[str, Pod] = {}
        self._index: PodIndex | None = None
        self._actual: dict[str, Actual] = {}
        self._places: dict[str, Place] = {}
        self._inside: dict[str, Pod] = {}
        self._retries = Retries()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._without_proxy: set[str] = set()
        self._blind = ""
        """Why it is not known whose inbound programs are attached."""
        self._settled = asyncio.Event()
        self.unreadable: dict[str, str] = {}
        """Uid -> sentence, of pods whose records cannot be read: the proxy keeps them as they are."""
        self.strays: set[str] = set()
        """Uids of pods that the kernel has and no record tells of: they stay captured until withdrawn."""

    # what the runtime asks for

    async def add(self, request: PodRequest) -> None:
        """Have a pod in the mesh. On return its traffic is captured and the proxy serves it. Idempotent.

        Raises: ValueError for a request that cannot be; EnrolmentFailed when it did not work out yet.
        """
        pod, place = await self.blocking(self.hands.locate, request)
        if self._is_left_over(pod.uid):
            try:
                async with self._turn(pod.uid):
                    await self._forget(pod.uid, pod.cookie)  # a former namespace of it
                    self._take(pod, place)
            except BaseException:
                place.close()
                raise
        else:
            self._take(pod, place)
        await self._converge(request.uid)
        try:
            async with asyncio.timeout(PROXY_WAIT_S):
                while request.uid in self._without_proxy:
                    await self._settled.wait()
        except TimeoutError:
            pass  # the failure says it
        reason = self._retries.reason(request.uid)
        if reason:
            raise EnrolmentFailed(f"pod {pod} is pending: {reason}")
        if request.uid not in self._desired:
            raise EnrolmentFailed(f"pod {pod} is not in the mesh: it was withdrawn meanwhile")

    async def remove(self, uid: str) -> None:
        """Have a pod out of the mesh; one that is not in it is fine. Raises: EnrolmentFailed."""
        if self._is_left_over(uid):
            async with self._turn(uid):
                await self._forget(uid)
                pod = self._want(uid, None)
        else:
            pod = self._want(uid, None)
        await self._converge(uid)
        reason = self._retries.reason(uid)
        if reason:
            raise EnrolmentFailed(f"pod {pod or uid} is not out of the mesh yet: {reason}")

    def _is_left_over(self, uid: str) -> bool:
        return uid in self.strays or uid in self.unreadable

    async def _forget(self, uid: str, kept: int = 0) -> None:
        """Withdraw what is left of a pod without a record, if it is still there, but in the namespace `kept`."""
        if not self._is_left_over(uid):
            return
        await self.blocking(self.hands.forget, uid, kept)
        if not kept and self.proxy is not None:
            await self.proxy.delete(uid)
        self.strays.discard(uid)
        self.unreadable.pop(uid, None)

    async def remove_all(self) -> None:
        """Have every pod out of the mesh. Raises: EnrolmentFailed for the first that did not work out."""
        for uid in {*self._actual, *self._desired, *self.strays, *self.unreadable}:
            await self.remove(uid)

    # start and run

    async def adopt(self) -> None:
        """Take over what an earlier agent left: nothing of a living pod is touched, what is gone is cleaned up."""
        found: Found = await self.blocking(self.hands.find_all)
        self.unreadable = found.unreadable
        self.strays = {one.pod.uid for one in found.strays if one.steered}
        for one in found.strays:
            if not one.steered:
                await self.blocking(self.hands.forget, one.pod.uid)
        for record, actual in found.gone:
            _log.info("pod %s went away while no agent ran", record.pod)
            self._actual[record.pod.uid] = actual
            await self._converge(record.pod.uid)
        for record, actual, place in found.alive:
            self._actual[record.pod.uid] = actual
            self._take(record.pod, place)
            await self._converge(record.pod.uid, announce=False)

    async def run(self) -> None:
        """Try again what is pending, and withdraw pods whose namespace is gone; until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_lives())
            while True:
                for uid in await self._retries.take_due():
                    group.create_task(self._converge(uid))

    async def _watch_lives(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_INTERVAL_S)
            for uid, pod in list(self._desired.items()):
                if not await self.blocking(self.hands.is_alive, pod) and self._desired.get(uid) is pod:
                    _log.info("pod %s is gone: its network namespace has neither a process nor a name any more", pod)
                    self._want(uid, None)
                    self._retries.schedule(uid, 0.0)
            await self.steer_again()

    async def steer_again(self) -> None:
        """Capture anew the pods whose inbound program somebody detached: plain text reaches them past every policy."""
        captured = [uid for uid in self._desired if self.is_captured(uid)]
        try:
            steered = await self.blocking(self.hands.steered)
        except OSError as error:  # somebody takes one away meanwhile, or there are no descriptors left: the next look tells
            if str(error) != self._blind:
                _log.error("cannot tell which pods' inbound programs are attached: %s", error)
            self._blind = str(error)
            return
        self._blind = ""
        for uid in captured:
            if uid not in steered and uid in self._desired and self.is_captured(uid):
                present = self._actual[uid]
                _log.error(
                    "pod %s lost its inbound program: plain text reached it past every policy: attaching it, and judging "
                    "the connections that came so",
                    present.pod,
                )
                self._actual = {**self._actual, uid: replace(present, layers=present.layers - {"capture"})}
                self._inside.pop(uid, None)  # it enters anew: who came meanwhile is looked at then
                self._retries.schedule(uid, 0.0)

    async def blocking(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run something on the one thread that enters namespaces and writes maps."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    # the ZDS server's view

    def snapshot(self) -> tuple[Sequence[Announcement], Sequence[str]]:
        """Pods that the kernel knows, to be added; pods whose record is unreadable or lost, to be kept."""
        ready = [one.pod for uid, one in self._actual.items() if uid in self._desired and "register" in one.layers]
        return [_announcement(pod) for pod in ready], [*self.unreadable, *sorted(self.strays)]

    def netns_of(self, uid: str) -> int | None:
        """A pod's namespace, as long as it is enrolled; the descriptor stays ours."""
        place = self._places.get(uid)
        return place.netns_fd if place else None

    def told(self, uid: str, reason: str) -> None:
        """The proxy answered for a pod of its snapshot."""
        present = self._actual.get(uid)
        if present is None or "register" not in present.layers:
            return
        if reason:
            self._fail(uid, f"the proxy did not take it: {reason}")
        else:
            self._actual = after(self._actual, Step(True, "announce", present.pod))
            self._retries.schedule(uid, 0.0)

    def proxy_changed(self) -> None:
        """Another proxy is the newest one, or none is: nobody was told of any pod."""
        self._actual = unannounced(self._actual)
        for uid in self._desired:
            self._retries.schedule(uid, _SNAPSHOT_GRACE_S)

    # what others ask about

    def pods(self) -> dict[str, Pod]:
        """The pods that are, or are to be, in the mesh, by uid."""
        return dict(self._desired)

    def index(self) -> PodIndex:
        """The same pods, by what reports name them with; made anew when they changed."""
        if self._index is None:
            self._index = PodIndex(self._desired.values())
        return self._index

    def pending_reason(self, uid: str) -> str:
        """Why a pod is not wholly in the mesh; empty when it is."""
        present = self._actual.get(uid)
        if present is not None and "announce" in present.layers and "capture" in present.layers:
            return ""
        return self._retries.reason(uid) or "the proxy was not told yet"

    def is_captured(self, uid: str) -> bool:
        """Whether the kernel captures the pod, so that nothing of it travels in plain text unasked."""
        present = self._actual.get(uid)
        return present is not None and "capture" in present.layers

    # converging

    def _want(self, uid: str, pod: Pod | None) -> Pod | None:
        """Have a pod desired, or no longer; what was desired before."""
        self._index = None
        before = self._desired.pop(uid, None)
        if pod is not None:
            self._desired[uid] = pod
        return before

    def _take(self, pod: Pod, place: Place) -> None:
        """Make a pod desired. A namespace that it had before is let go: what is undone there needs no visit."""
        self._drop_place(pod.uid)
        self._places[pod.uid] = place
        self._want(pod.uid, pod)
        asyncio.get_running_loop().add_reader(place.watch.fileno(), self._addresses_changed, pod.uid)

    def _drop_place(self, uid: str) -> None:
        place = self._places.pop(uid, None)
        if place is not None:
            asyncio.get_running_loop().remove_reader(place.watch.fileno())
            # After what is under way on the thread: a number that is given back may mean another file there.
            self._thread.submit(place.close)

    def _addresses_changed(self, uid: str) -> None:
        place = self._places.get(uid)
        if place is None:
            return  # gone, while it was to be asked again
        try:
            present = place.watch.read()
        except (OSError, ValueError) as error:
            _log.warning("pod %s: its addresses cannot be read, those it had stay in force: %s", uid, error)
            asyncio.get_running_loop().call_later(RETRY_LONGEST_S, self._addresses_changed, uid)  # the news is read
            return
        before = self._desired.get(uid)
        if before is None:
            return  # on its way out
        pod = updated_addresses(before, present)
        if pod != before:
            _log.info("pod %s now has the addresses %s", pod, ", ".join(map(str, pod.request.addresses)))
            self._want(uid, pod)
            self._retries.schedule(uid, 0.0)

    async def _converge(self, uid: str, announce: bool = True) -> None:
        """Do what is to be done for one pod; what fails is remembered, and tried again later."""
        async with self._turn(uid):
            failure, without_proxy = "", False
            for step in self._plan(uid):
                if step.layer == "announce" and step.add and not announce:
                    continue
                try:
                    await self._apply(step)
                except (OSError, ValueError, ProxyAway, MemoryError) as error:
                    failure = failure or (_NO_MEMORY if isinstance(error, MemoryError) else str(error))
                    without_proxy = without_proxy or isinstance(error, NoProxy)
                    if step.layer != "announce":
                        break  # what follows rests on it
            # Only now: while this was under way, whoever waits for a proxy for the pod waited on.
            (self._without_proxy.add if without_proxy else self._without_proxy.discard)(uid)
            self._settle(uid, failure)

    def _turn(self, uid: str) -> asyncio.Lock:
        """For what is done with one pod: one after the other, in the order in which it was asked for."""
        return self._locks.setdefault(uid, asyncio.Lock())

    def _plan(self, uid: str) -> list[Step]:
        desired = {uid: self._desired[uid]} if uid in self._desired else {}
        actual = {uid: self._actual[uid]} if uid in self._actual else {}
        return plan(desired, actual)

    async def _apply(self, step: Step) -> None:
        uid, wanted = step.pod.uid, self._desired.get(step.pod.uid)
        if step.layer == "announce":
            if self.proxy is None:
                raise NoProxy("no proxy is connected")
            await (self.proxy.add(_announcement(step.pod)) if step.add else self.proxy.delete(uid))
        else:
            here = wanted is None or same_place(wanted, step.pod)
            netns_fd = self.netns_of(uid) if here else None
            if not step.add:
                # From its first moment on a release may have ended the capture: a pod that is wanted again is captured anew.
                if step.layer == "register":
                    self._actual = after(self._actual, Step(False, "capture", step.pod))
                await self.blocking(self.hands.remove, step.layer, step.pod, netns_fd)
            elif netns_fd is not None:
                await self.blocking(self.hands.add, step.layer, step.pod, netns_fd)
            else:
                return  # withdrawn, or moved, while this was on its way
        self._actual = after(self._actual, step)

    def _settle(self, uid: str, failure: str) -> None:
        self._settled.set()
        self._settled = asyncio.Event()
        wanted, present = self._desired.get(uid), self._actual.get(uid)
        if failure and (wanted or present):
            self._fail(uid, failure)
            return
        self._retries.worked(uid)
        if self._plan(uid):
            self._retries.schedule(uid, RETRY_FIRST_S)
        elif wanted is not None:
            if uid not in self._inside:
                self._on_change(wanted, True)
            self._inside[uid] = wanted
        elif present is None:
            self._drop_place(uid)
            self._retries.cancel(uid)
            if uid in self._inside:
                self._on_change(self._inside.pop(uid), False)

    def _fail(self, uid: str, reason: str) -> None:
        pod = self._desired.get(uid) or self._actual[uid].pod
        if self._retries.failed(uid, reason):
            _log.warning("pod %s: %s", pod, reason)


def _announcement(pod: Pod) -> Announcement:
    return Announcement(pod.uid, pod.request.namespace, pod.request.name, pod.request.service_account)
