"""One ZDS connection's orders, packet by packet, with time as an argument: what upstream's own tests of the protocol expect."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.zds_packets import (
    ADD_ONE,
    ADD_WEB,
    ADD_WITHOUT_INFO,
    BIND_ERROR,
    DEL_ONE,
    KEEP_WEB,
    ONE_UID,
    SNAPSHOT,
    WEB_UID,
)
from tests.ztunnel.test_zds import Host
from wire.fds import Packet
from ztunnel.zds_session import RETRY_S, Session, ZdsProtocolError

pytestmark = pytest.mark.unit

WEB, ONE = "web-97958b57f-gsv6n", "one"
REFUSAL = f"failure to start proxy : {BIND_ERROR}"


class Talk:
    """A session, its host and its clock; files stand for namespaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 100.0
        self.host = Host()
        self.session = Session(self.host, lambda: self.now)

    def say(self, packet: bytes, netns: str = "") -> str:
        fds = [os.open(self.folder / netns, os.O_RDONLY | os.O_CREAT)] if netns else []
        return asyncio.run(self.session.handle(Packet(packet, fds)))

    def retry(self, after_s: float = 0.0) -> None:
        self.now += after_s
        asyncio.run(self.session.retry())

    def anew(self) -> None:
        """The connection is another one."""
        self.session.close()
        self.session = Session(self.host, lambda: self.now)
        self.host.steps.clear()


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    before = open_descriptors()
    made = Talk(tmp_path)
    yield made
    made.session.close()
    assert open_descriptors() <= before, "descriptors leaked"


def test_idempotent_add(talk: Talk) -> None:
    assert [talk.say(ADD_WEB, "a"), talk.say(ADD_WEB, "a"), talk.say(SNAPSHOT), talk.say(ADD_WEB, "a")] == [""] * 4
    assert talk.host.steps == [f"start {WEB}", "complete"]


def test_failure_pending_retry_ready(talk: Talk) -> None:
    talk.host.broken = {WEB_UID}
    assert talk.say(ADD_WEB, "a") == REFUSAL
    assert not talk.session.ready and talk.session.retry_at == talk.now + RETRY_S
    assert talk.say(SNAPSHOT) == "" and talk.session.ready and [pod.name for pod in talk.session.pending] == [WEB]
    talk.retry(RETRY_S - 0.1)
    assert talk.host.attempts[WEB_UID] == 1, "too early"
    talk.retry(0.1)
    assert talk.host.attempts[WEB_UID] == 2 and talk.session.retry_at == talk.now + RETRY_S
    talk.host.broken = set()
    talk.retry(RETRY_S)
    assert WEB_UID in talk.host.pods and not talk.session.pending and talk.session.retry_at is None


def test_a_repeated_add_is_another_attempt_at_once(talk: Talk) -> None:
    talk.say(SNAPSHOT)
    talk.host.broken = {WEB_UID}
    assert [talk.say(ADD_WEB, "a"), talk.say(ADD_WEB, "a")] == [REFUSAL] * 2 and talk.host.attempts[WEB_UID] == 2
    talk.host.broken = set()
    assert talk.say(ADD_WEB, "a") == "" and not talk.session.pending


def test_each_pending_pod_is_tried_every_five_seconds_one_at_a_time(talk: Talk) -> None:
    talk.host.broken = {WEB_UID, ONE_UID}
    talk.say(ADD_WEB, "a")
    talk.now += 1
    talk.say(ADD_ONE, "b")
    talk.retry(RETRY_S)
    assert talk.host.attempts == {WEB_UID: 2, ONE_UID: 1}
    talk.retry()
    assert talk.host.attempts == {WEB_UID: 2, ONE_UID: 2}
    talk.retry()
    assert talk.host.attempts == {WEB_UID: 2, ONE_UID: 2}


def test_workload_added_while_pending(talk: Talk) -> None:
    talk.host.broken = {WEB_UID}
    talk.say(ADD_WEB, "a")
    assert talk.say(ADD_ONE, "b") == "" and talk.say(SNAPSHOT) == ""
    assert set(talk.host.pods) == {ONE_UID} and [pod.uid for pod in talk.session.pending] == [WEB_UID]


def test_delete_before_snapshot(talk: Talk) -> None:
    talk.say(ADD_WEB, "a")
    talk.say(ADD_ONE, "b")
    assert talk.say(DEL_ONE) == "" and ONE_UID in talk.host.pods, "only the name is forgotten"
    talk.say(SNAPSHOT)
    assert set(talk.host.pods) == {WEB_UID}


def test_delete_of_a_pending_workload_ends_its_attempts(talk: Talk) -> None:
    talk.host.broken = {ONE_UID}
    talk.say(ADD_ONE, "b")
    talk.say(SNAPSHOT)
    assert talk.say(DEL_ONE) == "" and talk.say(DEL_ONE) == "" and not talk.session.pending
    talk.retry(RETRY_S)
    assert talk.host.attempts[ONE_UID] == 1


def test_keep(talk: Talk) -> None:
    talk.say(ADD_WEB, "a")
    talk.say(ADD_ONE, "b")
    talk.say(SNAPSHOT)
    talk.anew()
    assert [talk.say(KEEP_WEB), talk.say(SNAPSHOT)] == ["", ""]
    assert set(talk.host.pods) == {WEB_UID} and talk.session.ready


def test_different_netns_restart(talk: Talk) -> None:
    talk.say(ADD_WEB, "a")
    assert talk.say(ADD_WEB, "b") == ""
    assert talk.host.steps == [f"start {WEB}", f"stop {WEB_UID[:2]}", f"start {WEB}"]


def test_a_pod_in_a_new_namespace_that_fails_is_served_in_neither(talk: Talk) -> None:
    talk.say(SNAPSHOT)
    talk.say(ADD_WEB, "a")
    talk.host.broken = {WEB_UID}
    assert talk.say(ADD_WEB, "b") == REFUSAL and not talk.host.pods


def test_an_attempt_drops_no_pod_that_runs(talk: Talk) -> None:
    talk.host.broken = {WEB_UID}
    talk.say(ADD_WEB, "a")
    talk.host.broken = set()
    talk.say(ADD_ONE, "b")
    talk.retry(RETRY_S)
    talk.retry(RETRY_S)
    assert set(talk.host.pods) == {WEB_UID, ONE_UID} and not any(step.startswith("stop") for step in talk.host.steps)


def test_missing_info_rejected(talk: Talk) -> None:
    with pytest.raises(ZdsProtocolError, match="workload_info is required but not present"):
        talk.say(ADD_WITHOUT_INFO, "a")


def test_snapshot_removes_missing(talk: Talk) -> None:
    talk.say(ADD_WEB, "a")
    talk.say(ADD_ONE, "b")
    talk.say(SNAPSHOT)
    talk.anew()
    talk.say(ADD_WEB, "a")
    assert set(talk.host.pods) == {WEB_UID, ONE_UID}, "nothing is stopped before all are named"
    talk.say(SNAPSHOT)
    assert talk.host.steps == [f"stop {ONE_UID[:2]}", "complete"]


def test_second_snapshot_and_late_keep_rejected(talk: Talk) -> None:
    talk.say(SNAPSHOT)
    for packet, words in ((SNAPSHOT, "pod snapshot received already"), (KEEP_WEB, "pod keep received after snapshot")):
        with pytest.raises(ZdsProtocolError, match=words):
            talk.say(packet)
