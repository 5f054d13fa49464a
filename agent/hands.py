"""What enrolment does to the machine: blocking calls, made from one thread, each a few system calls long."""

import os
import time
from dataclasses import dataclass, replace

from agent import namespaces
from agent.addresses import AddressWatch
from agent.plan import Actual, Layer
from agent.pod import Pod, PodRequest
from agent.records import Record, Records
from bpf import pod_network
from bpf.layout import MARK_DELIVER, MARK_MASK, MARK_PROXY
from bpf.redirect import Enrolled, PodRedirect, Redirect
from bpf.sock_destroy import Connection, State, connections, destroy
from mesh.workload import Address
from wire.netns import open_home

HANDSHAKES_TIMEOUT_S = 0.2
MAX_PRE_MESH = 4096
"""Connections without a proxy that are remembered of a pod; more are kept as they are and not remembered."""


@dataclass(slots=True)
class Place:
    """An enrolled pod's namespace, held, with the watch over its addresses."""

    netns_fd: int
    watch: AddressWatch

    def close(self) -> None:
        """Let go of the namespace."""
        self.watch.close()
        os.close(self.netns_fd)


@dataclass(frozen=True, slots=True)
class Found:
    """What a starting agent finds: pods to adopt, pods that are gone with what is left of them, and what it cannot read."""

    alive: list[tuple[Record, Actual, Place]]
    gone: list[tuple[Record, Actual]]
    unreadable: dict[str, str]
    """Uid -> sentence."""
    strays: list[Enrolled]
    """In the kernel, without a record."""


class Hands:
    """Records, the pods' namespaces and the kernel's maps."""

    def __init__(self, records: Records, redirect: Redirect) -> None:
        self._records = records
        self._redirect = redirect
        self._home_fd = open_home()
        self._known: dict[str, Record] = {}
        self._steered: set[str] = set()
        """Pods that were in the mesh when this agent started: never out of it for a moment, whatever maps were made anew."""
        self._unjudged: dict[str, list[Connection]] = {}
        """Of pods whose inbound program is, or is to be, attached: who came before that and is yet to be remembered."""

    # finding

    def locate(self, request: PodRequest) -> tuple[Pod, Place]:
        """Find a pod's namespace and addresses.

        Raises: ValueError when the namespace is none, or none of the pod's addresses is in it.
        """
        pod, fd = namespaces.find(request, self._home_fd)
        place = self._hold(fd)
        try:
            return replace(pod, request=replace(request, addresses=_addresses(request, place.watch.read()))), place
        except BaseException:
            place.close()
            raise

    def find_all(self) -> Found:
        """Match the records with what is alive and with what the kernel has."""
        kernel = {one.pod.uid: one for one in self._redirect.enrolled()}
        self._steered = {uid for uid, one in kernel.items() if one.steered}
        found = Found([], [], {}, [])
        records, unreadable = self._records.read()
        found.unreadable.update(unreadable)
        boot = namespaces.boot_id()
        for record in records:
            pod = record.pod
            self._known[pod.uid] = record
            here = pod.boot_id == boot
            actual = _as_found(pod, kernel.pop(pod.uid, None) if here else None)
            try:
                place = self._find_again(pod) if here else None
            except OSError as error:  # this pod's trouble, not the node's: it stays as it is
                found.unreadable[pod.uid] = f"pod {pod}: its network namespace cannot be entered ({error}): enrol it anew"
                continue
            if place is None:
                found.gone.append((record, actual))
            else:
                found.alive.append((record, actual, place))
        found.strays.extend(one for uid, one in kernel.items() if uid not in unreadable)
        return found

    def _find_again(self, pod: Pod) -> Place | None:
        fd = namespaces.find_again(pod, self._home_fd)
        return None if fd is None else self._hold(fd)

    def _hold(self, netns_fd: int) -> Place:
        try:
            return Place(netns_fd, AddressWatch(netns_fd, self._home_fd))
        except BaseException:
            os.close(netns_fd)
            raise

    def is_alive(self, pod: Pod) -> bool:
        """Whether the pod's namespace is still somebody's but ours."""
        return namespaces.is_alive(pod)

    def steered(self) -> frozenset[str]:
        """The uids of pods whose inbound program is attached."""
        return self._redirect.steered()

    # layers

    def add(self, layer: Layer, pod: Pod, netns_fd: int) -> None:
        """Make one layer of a pod (not `announce`: that is the proxy's). OSError or ValueError, which names what failed."""
        if layer == "record":
            before = self._known.get(pod.uid)
            same = before is not None and before.pod.cookie == pod.cookie
            self._remember(replace(before, pod=pod) if before and same else Record(pod, int(time.time())))
        elif layer == "network":
            found = pod_network.prepare(netns_fd, self._home_fd)
            record = self._known[pod.uid]
            if not record.sysctls:
                self._remember(replace(record, sysctls=tuple(sorted(found.sysctls.items()))))
        elif layer == "register":
            attached = self._attached(pod)
            if attached is False:
                self._unjudged.setdefault(pod.uid, [])
            captured = attached is not None or pod.uid in self._steered  # then it stays so
            self._redirect.enrol(redirect_of(pod, capture=captured), netns_fd)
        elif layer == "capture":
            self._capture(pod, netns_fd)

    def remove(self, layer: Layer, pod: Pod, netns_fd: int | None) -> None:
        """Take one layer away; what is gone already is fine, and so is a namespace that is gone."""
        if layer == "register":
            self._steered.discard(pod.uid)
            if netns_fd is not None:
                self._let_handshakes_end(pod)
            self._redirect.withdraw(pod.uid, pod.cookie)
        elif layer == "network" and netns_fd is not None:
            record = self._known.get(pod.uid)
            if record is not None and record.sysctls:
                pod_network.restore(netns_fd, self._home_fd, pod_network.Before(dict(record.sysctls)))
        elif layer == "record":
            self._records.remove(pod.uid)
            self._known.pop(pod.uid, None)
            self._unjudged.pop(pod.uid, None)

    def _let_handshakes_end(self, pod: Pod) -> None:
        """Capture nothing more, and wait until the proxy has what is on its way: withdrawing would cut it off."""
        self._redirect.release(redirect_of(pod, capture=False))
        deadline = time.monotonic() + HANDSHAKES_TIMEOUT_S
        while time.monotonic() < deadline:
            if not any(one.handshakes for one in self._redirect.usage() if one.netns_cookie == pod.cookie):
                return
            time.sleep(0.001)

    def forget(self, uid: str, kept: int = 0) -> None:
        """Withdraw what no record that can be used describes, wherever the kernel has it but in the namespace `kept`."""
        for one in self._redirect.enrolled():
            if one.pod.uid == uid and one.pod.netns_cookie != kept:
                self._redirect.withdraw(uid, one.pod.netns_cookie)
        known = self._known.get(uid)
        if known is None or known.pod.cookie != kept:
            self._records.remove(uid)
            self._known.pop(uid, None)

    def record(self, uid: str) -> Record | None:
        """What is on disk of a pod."""
        return self._known.get(uid)

    def _remember(self, record: Record) -> None:
        if self._known.get(record.pod.uid) != record:
            self._records.write(record)
            self._known[record.pod.uid] = record

    # connections older than the enrolment

    def _capture(self, pod: Pod, netns_fd: int) -> None:
        """Who came without the proxy is looked for until it is remembered: a disk may be full when the program is attached."""
        attached = self._attached(pod)
        if attached is None:
            self._unjudged[pod.uid] = self._older_connections(pod, netns_fd)
        elif not attached:
            self._unjudged.setdefault(pod.uid, [])
        self._redirect.enrol(redirect_of(pod, capture=True), netns_fd)
        older = self._unjudged.get(pod.uid)
        if older is not None:
            self._remember_older(pod, netns_fd, [*older, *self._past_the_proxy(pod, netns_fd)])
            del self._unjudged[pod.uid]

    def _attached(self, pod: Pod) -> bool | None:
        """Whether a captured pod has its inbound program still; None: it is not captured."""
        captured = {one.pod.netns_cookie: one.steered for one in self._redirect.enrolled() if one.pod.capture}
        return captured.get(pod.cookie)

    def _older_connections(self, pod: Pod, netns_fd: int) -> list[Connection]:
        """But those that a proxy carries already: the pod was in the mesh, and what the kernel knew of it is lost."""
        if self._known[pod.uid].pre_mesh:
            return []
        return [one for one in self._foreign(pod, netns_fd) if one.mark & MARK_MASK not in (MARK_PROXY, MARK_DELIVER)]

    def _foreign(self, pod: Pod, netns_fd: int) -> list[Connection]:
        own = set(pod.request.addresses)
        return [
            one
            for one in connections(netns_fd, self._home_fd)
            if not (one.remote.is_loopback or one.local.is_loopback or one.remote in own)
        ]

    def _past_the_proxy(self, pod: Pod, netns_fd: int) -> list[Connection]:
        """Those that came while the inbound program was detached: what the proxy carries is marked, at both ends."""
        listening = self._listening(netns_fd)
        return [one for one in self._foreign(pod, netns_fd) if one.local_port in listening and not one.mark]

    def _remember_older(self, pod: Pod, netns_fd: int, older: list[Connection]) -> None:
        if older:
            record = self._known[pod.uid]
            older = sorted(older, key=lambda one: one.state is State.SYN_RECV)  # a flood of those crowds nobody out
            known = tuple(dict.fromkeys((*record.pre_mesh, *map(_tuple_of, older))))[:MAX_PRE_MESH]
            served = {port for _, port, _, _ in known} & {*record.served, *self._listening(netns_fd)}
            self._remember(replace(record, pre_mesh=known, served=tuple(sorted(served))))

    def older_connections(self, uid: str, netns_fd: int) -> tuple[list[Connection], set[int]]:
        """Those of a pod's remembered connections that still live, and the ports on which the pod listens, or did then."""
        record = self._known.get(uid)
        if record is None or not record.pre_mesh:
            return [], set()
        wanted = set(record.pre_mesh)
        living = [one for one in connections(netns_fd, self._home_fd) if _tuple_of(one) in wanted]
        self._remember(replace(record, pre_mesh=tuple(_tuple_of(one) for one in living)))
        return living, {*record.served, *self._listening(netns_fd)}

    def _listening(self, netns_fd: int) -> set[int]:
        return {one.local_port for one in connections(netns_fd, self._home_fd, [State.LISTEN])}

    def close_connections(self, netns_fd: int, chosen: list[Connection]) -> int:
        """Close connections; how many were still there."""
        return destroy(netns_fd, self._home_fd, chosen)

    def local_ports(self, netns_fd: int) -> int:
        """How many connections a pod can have captured at a time, in each family."""
        return pod_network.local_ports(netns_fd, self._home_fd)


def _addresses(request: PodRequest, present: tuple[Address, ...]) -> tuple[Address, ...]:
    """The namespace's addresses, those that the runtime named first.

    A namespace without any of them belongs to somebody else, or is not set up yet.
    """
    named = tuple(address for address in request.addresses if address in present)
    if request.addresses and not named:
        wanted = ", ".join(map(str, request.addresses))
        raise ValueError(f"pod {request}: {request.netns} has none of the addresses {wanted}: is it the pod's namespace?")
    if not present:
        raise ValueError(f"pod {request}: {request.netns} has no address yet: set up its network before its enrolment")
    return named + tuple(address for address in present if address not in named)


def updated_addresses(pod: Pod, present: tuple[Address, ...]) -> Pod:
    """The pod with the addresses that its namespace has now; those it had keep their order. None left: as it was."""
    kept = tuple(address for address in pod.request.addresses if address in present)
    addresses = kept + tuple(address for address in present if address not in kept)
    return replace(pod, request=replace(pod.request, addresses=addresses)) if addresses else pod


def redirect_of(pod: Pod, capture: bool) -> PodRedirect:
    """A pod as the kernel programs know it."""
    return PodRedirect(pod.uid, pod.cookie, pod.request.addresses, capture, pod.request.exclusions)


def _as_found(pod: Pod, kernel: Enrolled | None) -> Actual:
    """A recorded pod as the kernel has it. Its network settings count as not made: making them again changes nothing."""
    layers: set[Layer] = {"record"}
    if kernel is None or kernel.pod.netns_cookie != pod.cookie:
        return Actual(pod, frozenset(layers))
    layers.add("register")
    if kernel.pod.capture and kernel.steered:
        layers.add("capture")
    # The kernel keeps which address is first of each family, not the order of all.
    same = set(kernel.pod.addresses) == set(pod.request.addresses)
    addresses = pod.request.addresses if same else kernel.pod.addresses
    return Actual(pod, frozenset(layers), addresses, kernel.pod.exclusions)


def _tuple_of(one: Connection) -> tuple[str, int, str, int]:
    return str(one.local), one.local_port, str(one.remote), one.remote_port
