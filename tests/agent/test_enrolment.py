"""Enrolment where what it rests on fails at the wrong moment; with a machine that is scripted, as no disk fails on cue."""

import asyncio
import os
import socket
import threading
from typing import Any, cast

import pytest

from agent.enrolment import Enrolment, EnrolmentFailed
from agent.hands import Hands, Place
from agent.plan import Layer
from agent.pod import Pod, PodRequest

pytestmark = pytest.mark.unit

REQUEST = PodRequest("uid-1", "demo", "web", "web", "/run/netns/web")
POD = Pod(REQUEST, (4, 1), 7, "boot")


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


async def withdrawn_while_its_record_is_refused() -> None:
    hands = FullDisk()
    enrolment = Enrolment(cast(Hands, hands), lambda pod, entered: None)
    running = asyncio.create_task(enrolment.run())
    adding = asyncio.create_task(enrolment.add(REQUEST))
    await asyncio.to_thread(hands.asked.wait, 30)
    removing = asyncio.create_task(enrolment.remove(REQUEST.uid))
    await asyncio.sleep(0)  # it has said that it wants no such pod, and waits for its turn
    assert not enrolment.pods()
    hands.let.set()
    with pytest.raises(EnrolmentFailed, match="withdrawn meanwhile"):
        await adding
    await removing
    assert not running.done() and enrolment.pending_reason(REQUEST.uid) == "the proxy was not told yet"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    hands.ends[1].close()


def test_a_pod_that_goes_while_its_record_is_refused_costs_nobody_else_anything() -> None:
    asyncio.run(withdrawn_while_its_record_is_refused())
