"""The account of connections: registered before the first check, judged again on each change, gone with their end; logged."""

import gc
import logging
import sys
import time
from dataclasses import fields, replace
from ipaddress import ip_address

import pytest

from mesh.identity import Identity
from mesh.matching import Connection
from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.policy_store import PolicyStore
from mesh.workload import Address, Workload
from ztunnel.carried import Carried, Kind
from ztunnel.channel import Closed, FromWorker, Opened, Progress
from ztunnel.connection_record import ConnectionRecord, names_of, place_of
from ztunnel.failures import AT_ONCE, Failures
from ztunnel.ledger import Ledger, Tracked
from ztunnel.loop import Loop
from ztunnel.stream_owner import NOBODY, Owner
from ztunnel.walk import ENDINGS_PER_TURN, PER_TURN

pytestmark = pytest.mark.unit

SOURCE, LOCAL = (ip_address("10.0.0.2"), 999), (ip_address("10.0.0.1"), 15008)
WEB = Workload("Kubernetes//Pod/shop/web", "web", "shop", (LOCAL[0],))
CLIENT = Identity("cluster.local", "shop", "client")
SETTLED_NS = 50 * 10**9
"""Longer than a busy machine has a test stand still: nobody is open for a while before a test says so."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztunnel.ledger.SETTLED_NS", SETTLED_NS)


def policy(name: str, action: Action, account: str, dry_run: bool = False) -> Policy:
    principals = (StringMatch("exact", f"cluster.local/ns/shop/sa/{account}"),)
    return Policy("shop", name, Scope.NAMESPACE, action, (((Match(principals=principals),),),), dry_run)


class Pump:
    """Something that moves bytes, until it is told not to."""

    sent, received = 5, 7

    def __init__(self) -> None:
        self.aborted: list[tuple[str, str]] = []
        self.owner: Owner = NOBODY
        self.is_stuck = False

    def abort(self, flag: str, error: str) -> None:
        self.aborted.append((flag, error))


class Judged(Tracked):
    """A connection that policies are asked about."""

    subject = Connection(SOURCE[0], CLIENT, LOCAL[0], 8080)
    judged_port = 8080


class Book:
    """A ledger, what it said, and its policies."""

    def __init__(self, log_level: int = logging.DEBUG) -> None:
        self.heard: list[FromWorker] = []
        self.policies = PolicyStore()
        self.loop = Loop()
        self.ledger = Ledger(self.loop, self.heard.append, Failures(self.heard.append), self.policies, log_level)

    def register(self, judged: bool = True) -> Tracked:
        record = ConnectionRecord(self.ledger.next_number(), "u1", "inbound", "HBONE", SOURCE, LOCAL, source_identity=CLIENT)
        tracked = Judged(self.ledger, record) if judged else Tracked(self.ledger, record)
        tracked.workload = WEB if judged else None
        self.ledger.register(tracked)
        return tracked

    def settle(self, port: int, judged: bool = True, source: Address = SOURCE[0]) -> tuple[Tracked, Carried, Pump]:
        """A connection that was opened a while ago, as it was and as it is."""
        tracked, pump = self.register(judged), Pump()
        tracked.pump = pump
        tracked.record.source = source, port
        tracked.opened()
        tracked.began_ns -= SETTLED_NS
        self.ledger.progress(60.0)
        carried = self.ledger.open[tracked.number]
        assert isinstance(carried, Carried) and pump.owner is carried
        return tracked, carried, pump


def test_connection_manager_close() -> None:
    """Whom a change of policy forbids is closed, on the wire too; its neighbours, and what no policy is asked about, stay."""
    book = Book()
    tracked, outbound = book.register(), book.register(judged=False)
    pump = tracked.pump = Pump()
    tracked.opened()
    book.ledger.recheck(lambda _: WEB)
    told: list[tuple[list[ConnectionRecord], bool]] = []
    book.ledger.tell_records(lambda *part: told.append(part))
    assert not pump.aborted and told == [([tracked.record], False)]
    book.policies.apply([policy("no", Action.DENY, "client")], [])
    book.ledger.recheck(lambda _: None)
    error = "connection closed due to policy change: explicitly denied by: shop/no"
    assert pump.aborted == [("DENY", error)] and list(book.ledger.open.values()) == [outbound]
    closed = book.heard[-1]
    assert isinstance(closed, Closed) and (closed.record.flag, closed.record.error, closed.was_open) == ("DENY", error, True)
    assert (closed.record.bytes_sent, closed.record.bytes_received, closed.record.policy) == (5, 7, "shop/no")


def test_connection_manager_release() -> None:
    """Who has ended is written down once, and no change of policy finds it."""
    book = Book()
    tracked = book.register()
    tracked.ended("-", "")
    tracked.ended("CONNECT", "again")
    book.policies.apply([policy("no", Action.DENY, "client")], [])
    book.ledger.recheck(lambda _: WEB)
    assert [type(one) for one in book.heard] == [Closed] and not book.ledger.open and tracked.record.flag == "-"


def test_policy_watcher_lifecycle() -> None:
    """A change between registration and the first check is not missed, and one that allows again disturbs nobody."""
    book = Book()
    tracked = book.register()
    book.policies.apply([policy("no", Action.DENY, "client")], [])
    assert not book.ledger.judge(tracked).allowed, "the first check sees it"
    book.policies.apply([], ["shop/no"])
    assert book.ledger.judge(tracked).allowed
    tracked.opened()
    book.ledger.recheck(lambda _: WEB)
    assert [type(one) for one in book.heard] == [Opened]
    tracked.pump = Pump()
    for _ in range(2):
        book.ledger.progress(60.0)
    assert book.heard[1:] == [Progress([(1, 5, 7)])], "told once, as long as nothing moves"


@pytest.mark.parametrize(("log_level", "threshold"), [(logging.DEBUG, logging.DEBUG), (logging.INFO, logging.INFO)])
def test_verdicts_are_logged_for_who_wants_them(caplog: pytest.LogCaptureFixture, log_level: int, threshold: int) -> None:
    book = Book(log_level)
    tracked = book.register()
    book.policies.apply([policy("maybe", Action.DENY, "client", dry_run=True), policy("other", Action.DENY, "x", True)], [])
    caplog.set_level(threshold + 1, "rbac")
    book.ledger.judge(tracked)
    assert not caplog.records
    caplog.set_level(threshold, "rbac")
    assert book.ledger.judge(tracked).allowed, "a dry run changes nothing"
    book.policies.apply([policy("no", Action.DENY, "client")], ["shop/maybe"])
    book.ledger.judge(tracked)
    who = "10.0.0.2 (spiffe://cluster.local/ns/shop/sa/client) to 10.0.0.1 port 8080: "
    assert [(one.name, one.levelno, one.getMessage()) for one in caplog.records] == [
        ("rbac", log_level, who + "allowed by default"),
        ("rbac", log_level, who + "dry run: Deny shop/maybe matches"),
        ("rbac", log_level, who + "explicitly denied by: shop/no"),
    ]


def test_who_waits_for_an_answer_that_never_comes_is_given_up() -> None:
    book = Book()
    waiting, serving, late = book.register(judged=False), book.register(judged=False), book.register(judged=False)
    pump = waiting.pump = Pump()
    serving.opened()
    for tracked in (waiting, serving):
        tracked.began_ns -= 60 * 10**9
    late.began_ns -= 30 * 10**9
    book.ledger.progress(60.0)
    assert pump.aborted == [("CONNECT", "connection failed: not open after 60 s")]
    assert list(book.ledger.open) == [serving.record.number, late.record.number]


def test_connections_that_never_opened_are_told_in_few_words_and_all_of_those_that_did() -> None:
    """As a pod's own are that it resets at once, by the thousand a second."""
    book = Book()
    for number in range(AT_ONCE + 100):
        opens, refused = book.register(), book.register()
        opens.opened()
        opens.ended("-", "")
        refused.ended("CONNECT", f"no, for the {number}th time")
    book.ledger.failures.finish()
    closed = [one for one in book.heard if isinstance(one, Closed)]
    assert sum(one.was_open for one in closed) == AT_ONCE + 100
    told = [(one.count, one.record.error) for one in closed if not one.was_open]
    assert [count for count, _ in told] == [1] * AT_ONCE + [100]
    assert told[-1] == (100, f"no, for the {AT_ONCE + 99}th time") and not book.ledger.open


def test_thousands_are_judged_and_told_in_parts_and_who_ends_meanwhile_is_neither() -> None:
    book = Book()
    everybody = [book.register() for _ in range(3 * PER_TURN)]
    for tracked in everybody:
        tracked.opened()
        tracked.pump = Pump()
    told: list[tuple[list[ConnectionRecord], bool]] = []
    book.ledger.tell_records(lambda *part: told.append(part))
    book.ledger.progress(60.0)
    book.policies.apply([policy("no", Action.DENY, "client")], [])
    book.ledger.recheck(lambda _: WEB)
    assert len(book.ledger.open) == 3 * PER_TURN - ENDINGS_PER_TURN, "some at once, and fewer where each has to end"
    everybody[0].ended("-", "")
    while book.ledger.open or told[-1][1]:
        before = len(book.ledger.open)
        book.loop.turn(1)
        assert before - len(book.ledger.open) <= ENDINGS_PER_TURN
    assert not book.ledger.open
    assert [unfinished for _, unfinished in told] == [True, True, False]
    numbers = [record.number for part, _ in told for record in part]
    assert len(numbers) == len(set(numbers)) and 1 not in numbers, "the first has ended"
    ended = [one.record for one in book.heard if isinstance(one, Closed)]
    assert len(ended) == 3 * PER_TURN and [one.number for one in ended if one.flag != "DENY"] == [1]


def test_bytes_that_a_listing_shows_are_counted_at_once() -> None:
    """Else those of a connection that is idle afterwards would be missing from the metrics for as long as that is."""
    book = Book()
    tracked, (_, carried, moves) = book.register(), book.settle(4711)
    tracked.pump = Pump()
    tracked.opened()
    moves.sent = 6
    book.heard.clear()
    told: list[tuple[list[ConnectionRecord], bool]] = []
    book.ledger.tell_records(lambda *part: told.append(part))
    assert [(one.number, one.bytes_sent, one.bytes_received) for one in told[0][0]] == [(1, 5, 7), (carried.number, 6, 7)]
    assert book.heard == [Progress([(1, 5, 7), (carried.number, 6, 7)])]
    book.ledger.progress(60.0)
    assert len(book.heard) == 1, "and once"


def test_how_who_may_have_to_begin_anew_began_is_not_forgotten() -> None:
    book = Book()
    tracked, pump = book.register(), Pump()
    tracked.pump, pump.owner, pump.is_stuck = pump, tracked, True
    tracked.opened()
    tracked.began_ns -= SETTLED_NS
    book.ledger.progress(60.0)
    assert pump.owner is tracked is book.ledger.open[tracked.number]
    tracked.opened()
    assert len([one for one in book.heard if isinstance(one, Opened)]) == 1
    pump.is_stuck = False
    book.ledger.progress(60.0)
    carried = book.ledger.open[tracked.number]
    assert isinstance(carried, Carried) and pump.owner is carried
    assert not carried.declined(pump, True), "nobody knows any more where else it could go"


def test_who_is_open_for_a_while_is_told_as_before_and_ends_as_before() -> None:
    book, began_ns = Book(), time.time_ns()
    before, carried, pump = book.settle(4711)
    ended_ns = time.time_ns()
    young, making = book.register(), book.register()
    young.pump = Pump()
    young.opened()
    book.ledger.progress(60.0)
    assert list(book.ledger.open.values()) == [carried, young, making], "none of them yet"
    assert book.ledger.of_pod("u1") == [1, 2, 3]
    before.abort("-", "whoever has it still does not speak for it any more")
    assert carried.number in book.ledger.open and not pump.aborted
    opened = next(one.record for one in book.heard if isinstance(one, Opened))
    told: list[tuple[list[ConnectionRecord], bool]] = []
    book.ledger.tell_records(lambda *part: told.append(part))
    shown = told[0][0][0]
    assert began_ns - 10**9 <= shown.opened_unix_ns + SETTLED_NS <= ended_ns + 10**9, "clocks may be set a little"
    shown.opened_unix_ns = opened.opened_unix_ns
    assert (opened.source, shown) == ((SOURCE[0], 4711), opened)
    book.heard.clear()
    pump.received = 9
    book.ledger.progress(60.0)
    assert book.heard == [Progress([(1, 5, 9)])]
    pump.sent = 6
    carried.opened()
    carried.ended("-", "h2 failed: connection closed")
    carried.ended("CONNECT", "again")
    closed = book.heard[-1]
    assert isinstance(closed, Closed) and closed.was_open and len(book.heard) == 2 and list(book.ledger.open) == [2, 3]
    record = closed.record
    assert (record.number, record.source, record.bytes_sent, record.bytes_received) == (1, (SOURCE[0], 4711), 6, 9)
    assert (record.flag, record.error) == ("-", "h2 failed: connection closed") and record.duration_ns >= SETTLED_NS
    assert carried.pump is None, "the two do not keep each other"


def test_who_is_open_for_a_while_is_judged_by_every_change_of_policy() -> None:
    book = Book()
    book.policies.apply([policy("yes", Action.ALLOW, "client")], [])
    _, first, pump = book.settle(1)
    _, second, _ = book.settle(2)
    _, outbound, _ = book.settle(3, judged=False)
    assert (first.subject, first.workload, outbound.subject) == (Judged.subject, WEB, None)
    newer = replace(WEB, canonical_name="web")
    book.ledger.recheck(lambda uid: newer if uid == "u1" else None)
    assert first.record.policy == second.record.policy == "shop/yes" and first.workload is second.workload is newer
    assert len(book.ledger.kinds) == 2, "what nobody is of any more is forgotten"
    far = ip_address("10.9.9.9")
    _, stranger, _ = book.settle(4, source=far)
    assert stranger.subject == Judged.subject._replace(source=far)
    stranger.ended("-", "")
    book.heard.clear()
    book.policies.apply([policy("no", Action.DENY, "client")], [])
    book.ledger.recheck(lambda _: None)
    error = "connection closed due to policy change: explicitly denied by: shop/no"
    assert pump.aborted == [("DENY", error)] and list(book.ledger.open.values()) == [outbound]
    ended = [one.record for one in book.heard if isinstance(one, Closed)]
    assert sorted((one.source[1], one.flag, one.policy) for one in ended) == [(1, "DENY", "shop/no"), (2, "DENY", "shop/no")]


def test_what_is_idle_for_a_while_holds_little_of_its_own() -> None:
    """Tens of thousands may be: what they have in common is there once, and how each began is gone."""
    _, carried, pump = Book().settle(4711)
    own = _held_by(carried, Kind, type(pump), type(SOURCE[0]))
    assert sum(map(sys.getsizeof, own)) <= 250


def test_what_is_kept_once_for_many_is_all_but_what_differs_for_each() -> None:
    record = ConnectionRecord(*[one.name for one in fields(ConnectionRecord)])  # type: ignore[arg-type]
    own = {"number", "source", "opened_unix_ns", "duration_ns", "bytes_sent", "bytes_received", "flag", "error"}
    assert sorted([*own, *names_of(record), *place_of(record)]) == sorted(one.name for one in fields(ConnectionRecord))  # type: ignore[type-var]


def _held_by(one: object, *shared: type) -> list[object]:
    """What would go with an object, but for what it has in common with others."""
    found: dict[int, object] = {}
    left = [one]
    while left:
        here = left.pop()
        if id(here) not in found and not isinstance(here, (type, *shared)):
            found[id(here)] = here
            left += gc.get_referents(here)
    return list(found.values())
