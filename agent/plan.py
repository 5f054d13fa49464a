"""From what should be to what is, step by step in an order that is safe at every point.

A pod in the mesh has five layers, each made on top of those before:

    record    on disk, so that a restart knows what to adopt or to clean up
    network   sysctls, mark rules and table 100 in its namespace: the proxy's connections to the app need them
    register  the kernel programs know the pod, and register the proxy's listeners in it; nothing is captured yet
    announce  the proxy has the pod's namespace, listens in it and acknowledged that
    capture   the pod's traffic goes to the proxy, and nowhere else

So a pod with running programs enters without one refused connection. When no proxy takes the pod, it is captured all the
same, and refused until one does: capture rests on register, not on announce. A pod that leaves is released from capture
before the proxy is told, again so that nothing is refused in between; its record goes last. What is not desired goes: so a
starting agent plans for no pod before it has read all of its records.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agent.pod import Pod
from mesh.exclusions import NOTHING, Exclusions
from mesh.workload import Address

Layer = Literal["record", "network", "register", "announce", "capture"]
UP: tuple[Layer, ...] = ("record", "network", "register", "announce", "capture")
DOWN: tuple[Layer, ...] = ("register", "announce", "network", "record")
"""Taking `register` away takes `capture` with it."""


@dataclass(frozen=True, slots=True)
class Actual:
    """A pod as it is now; `addresses` and `exclusions` are those that the kernel's maps hold for it."""

    pod: Pod
    layers: frozenset[Layer] = frozenset()
    addresses: tuple[Address, ...] = ()
    exclusions: Exclusions = NOTHING


@dataclass(frozen=True, slots=True)
class Step:
    """Make or take away one layer of one pod."""

    add: bool
    layer: Layer
    pod: Pod

    def __str__(self) -> str:
        return f"{'add' if self.add else 'remove'} {self.layer} of {self.pod}"


def plan(desired: Mapping[str, Pod], actual: Mapping[str, Actual]) -> list[Step]:
    """The steps from `actual` to `desired`, both by uid; withdrawals before enrolments.

    A pod that came back under its uid in another namespace is withdrawn and enrolled anew.
    """
    steps: list[Step] = []
    for uid, present in sorted(actual.items()):
        wanted = desired.get(uid)
        if wanted is None or not same_place(wanted, present.pod):
            steps += [Step(False, layer, present.pod) for layer in DOWN if layer in present.layers]
    for uid, pod in sorted(desired.items()):
        found = actual.get(uid)
        steps += _enrol(pod, found if found and same_place(pod, found.pod) else Actual(pod))
    return steps


def _enrol(pod: Pod, present: Actual) -> list[Step]:
    missing = {layer for layer in UP if layer not in present.layers}
    if pod != present.pod:
        missing.add("record")
    if {one.version for one in pod.request.addresses} - {one.version for one in present.addresses}:
        missing.add("network")  # of a family that the namespace did not have
    if (present.addresses, present.exclusions) != (pod.request.addresses, pod.request.exclusions):
        missing.add("capture" if "capture" in present.layers else "register")
    return [Step(True, layer, pod) for layer in UP if layer in missing]


def same_place(one: Pod, other: Pod) -> bool:
    """Whether two pods of one uid are in the same namespace of the same boot."""
    return (one.cookie, one.boot_id) == (other.cookie, other.boot_id)


def after(actual: Mapping[str, Actual], step: Step) -> dict[str, Actual]:
    """The state once a step succeeded. The applier keeps its books with this, so that plan and books cannot drift apart."""
    state = dict(actual)
    uid = step.pod.uid
    present = state.get(uid) or Actual(step.pod)
    gone: set[Layer] = {"register", "capture"} if step.layer == "register" else {step.layer}
    layers = present.layers | {step.layer} if step.add else present.layers - gone
    addresses, exclusions = present.addresses, present.exclusions
    if step.layer in ("register", "capture"):
        request = step.pod.request
        addresses, exclusions = (request.addresses, request.exclusions) if step.add else ((), NOTHING)
    if layers:
        state[uid] = Actual(step.pod, layers, addresses, exclusions)
    else:
        state.pop(uid, None)
    return state


def unannounced(actual: Mapping[str, Actual]) -> dict[str, Actual]:
    """The state once the proxy is gone: whoever comes next is told of every pod again."""
    return {uid: replace(one, layers=one.layers - {"announce"}) for uid, one in actual.items()}
