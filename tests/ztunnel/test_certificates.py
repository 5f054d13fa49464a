"""The life of workload certificates, told with times as arguments; backoff and priorities as Istio's ztunnel shows them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import Identity
from ztunnel.certificates import MAX_FETCHES, MAX_PREFETCHES, Certificate, Certificates, Failed, Forgotten, Issued, Priority

pytestmark = pytest.mark.unit

WEB, DB = (Identity("cluster.local", "demo", name) for name in ("web", "db"))
DAY = 86_400.0


def issue(identity: Identity, not_before: float, not_after: float) -> Certificate:
    return Certificate(identity, b"chain", b"key", b"roots", not_before, not_after)


def test_duplicate_requests_are_one_fetch_and_it_is_refreshed_at_half_life() -> None:
    certificates = Certificates()
    assert certificates.request(WEB, Priority.WARMUP, now=100) == []
    assert certificates.request(WEB, Priority.REALTIME, now=101) == []
    assert certificates.start(now=101) == WEB
    assert certificates.start(now=101) is None and certificates.next_due_at() is None
    first = issue(WEB, not_before=101 - 120, not_after=101 + DAY)
    assert certificates.fetched(first, now=102) == [Issued(first)]
    assert certificates.request(WEB, Priority.REALTIME, now=103) == [Issued(first)]
    half = 101 - 120 + (DAY + 120) / 2
    assert certificates.next_due_at() == half
    assert certificates.start(half - 1) is None
    assert certificates.start(half) == WEB


def test_what_a_refresh_finds_unchanged_is_no_news_and_looked_at_again_before_it_expires() -> None:
    """A source that pushes may have nothing newer when it is asked: workers must not build the same again."""
    certificates = Certificates()
    certificates.request(WEB, Priority.WARMUP, now=0)
    certificates.start(0)
    same = issue(WEB, 0, 100)
    assert certificates.fetched(same, now=0) == [Issued(same)]
    assert certificates.start(50) == WEB and certificates.fetched(issue(WEB, 0, 100), now=50) == []
    assert certificates.next_due_at() == 75


def test_backoff_reset_and_who_waits_hears_of_a_failure_at_once() -> None:
    certificates = Certificates()
    certificates.request(WEB, Priority.REALTIME, now=0)
    now, pauses = 0.0, []
    for attempt in range(10):
        assert certificates.start(now) == WEB
        assert certificates.failed(WEB, f"refused {attempt}", now, jitter=0) == [Failed(WEB, f"refused {attempt}")]
        assert certificates.request(WEB, Priority.REALTIME, now) == [Failed(WEB, f"refused {attempt}")]
        due = certificates.next_due_at()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]
    assert certificates.start(now) == WEB
    certificate = issue(WEB, now, now + DAY)
    certificates.fetched(certificate, now)
    assert certificates.start(now + DAY / 2) == WEB
    assert certificates.failed(WEB, "refused", now + DAY / 2, jitter=1) == []
    assert certificates.next_due_at() == pytest.approx(now + DAY / 2 + 1.2), "success reset the backoff; +20 % jitter"


def test_a_clock_that_is_set_back_delays_no_attempt_beyond_the_longest_pause() -> None:
    """A machine that starts in the wrong year finds every certificate invalid, until somebody tells it the time."""
    certificates, wrong, right = Certificates(), 300 * DAY, 100 * DAY
    certificates.request(WEB, Priority.REALTIME, wrong)
    assert certificates.start(wrong) == WEB
    certificates.failed(WEB, "certificate is not valid now", wrong, jitter=1)
    assert certificates.start(wrong - 170) is None, "a small step takes no longer than a pause may"
    assert certificates.start(right) == WEB
    assert certificates.fetched(good := issue(WEB, right, right + DAY), right) == [Issued(good)]
    assert certificates.start(right) is None
    due = right + 0.6 * DAY
    assert certificates.start(due) == WEB
    assert certificates.failed(WEB, "CA away", due + 0.3 * DAY, jitter=1) == [], "half a step forward, and back"
    assert certificates.start(due + 1) == WEB


def test_retention_of_an_old_certificate_until_it_expires() -> None:
    certificates = Certificates()
    certificates.request(WEB, Priority.WARMUP, now=0)
    certificates.start(0)
    old = issue(WEB, 0, 100)
    certificates.fetched(old, 0)
    now = 50.0
    while now < 100:
        assert certificates.start(now) == WEB
        assert certificates.failed(WEB, "CA away", now, jitter=-1) == []
        assert certificates.available(now) == [old]
        due = certificates.next_due_at()
        assert due is not None
        now = due
    assert now == 100
    assert certificates.start(now) == WEB
    assert certificates.failed(WEB, "CA away", now, jitter=0) == [Failed(WEB, "CA away")]
    assert certificates.states(now) == [(WEB, "Unavailable: CA away", None)]


def test_priority_order_and_concurrency() -> None:
    certificates = Certificates()
    many = [Identity("cluster.local", "demo", f"sa{number:02}") for number in range(20)]
    for number, identity in enumerate(many):
        certificates.request(identity, Priority.WARMUP, now=float(20 - number))
    certificates.request(DB, Priority.BACKGROUND, now=0)
    certificates.request(WEB, Priority.REALTIME, now=19.5)
    certificates.request(many[0], Priority.REALTIME, now=20)
    order = [certificates.start(now=30) for _ in range(MAX_FETCHES + 1)]
    assert order == [WEB, many[0], *reversed(many[14:]), None]
    certificates.failed(WEB, "no", 30, 0)
    assert certificates.start(30) == many[13]


def test_forget_pending_leaves_no_key_and_a_late_certificate_is_of_use_only_to_who_came_back() -> None:
    certificates = Certificates()
    certificates.request(WEB, Priority.REALTIME, 0)
    certificates.start(0)
    assert certificates.forget(WEB) == [Forgotten(WEB)]
    assert certificates.forget(WEB) == []
    late = issue(WEB, 0, 100)
    assert certificates.fetched(late, 1) == [] and certificates.available(1) == []
    certificates.request(WEB, Priority.REALTIME, 2)
    certificates.start(2)
    certificates.forget(WEB)
    certificates.request(WEB, Priority.REALTIME, 3)
    assert certificates.start(3) is None, "the fetch that is under way serves it"
    assert certificates.fetched(late, 4) == [Issued(late)]


def test_a_life_whose_half_has_passed_is_refreshed_in_half_of_the_rest() -> None:
    assert issue(WEB, not_before=-120, not_after=10).refresh_at(now=0) == 5
    assert issue(WEB, not_before=-120, not_after=0.5).refresh_at(now=0) == 1


def test_refreshes_spread_around_half_of_a_life() -> None:
    assert [issue(WEB, 0, 1000).refresh_at(0, jitter) for jitter in (-1, 0, 1)] == pytest.approx([450, 500, 550])


def test_what_no_connection_asked_for_waits_in_a_bounded_queue() -> None:
    certificates = Certificates()
    assert certificates.prefetch_room == MAX_PREFETCHES
    for number in range(MAX_PREFETCHES):
        certificates.request(Identity("td", "ns", str(number)), Priority.WARMUP, 0)
    certificates.request(WEB, Priority.REALTIME, 0)
    assert certificates.prefetch_room == 0
    assert certificates.start(0) == WEB
    first = certificates.start(0)
    assert first is not None
    certificates.fetched(issue(first, 0, 100), 0)
    assert certificates.prefetch_room == 1


def test_a_known_certificate_is_the_beginning_of_an_ordinary_life() -> None:
    certificates = Certificates()
    known = issue(WEB, not_before=0, not_after=100)
    assert certificates.adopt(issue(DB, 0, 10), now=10) == [] and certificates.identities() == set(), "expired"
    assert certificates.adopt(known, now=60) == [Issued(known)]
    assert certificates.adopt(issue(WEB, 0, 200), now=60) == [] and certificates.available(60) == [known]
    assert certificates.start(79) is None and certificates.start(80) == WEB
    assert certificates.failed(WEB, "CA away", 80, jitter=0) == []
    assert certificates.available(99) == [known] and certificates.available(100) == []


def test_what_has_expired_is_not_there_any_more() -> None:
    certificates = Certificates()
    certificates.request(WEB, Priority.REALTIME, now=0)
    certificates.request(DB, Priority.WARMUP, now=0)
    first = issue(WEB, not_before=0, not_after=100)
    assert certificates.start(now=0) == WEB and certificates.fetched(first, now=0) == [Issued(first)]
    assert certificates.available(99) == [first] and certificates.available(100) == []
    assert certificates.states(99) == [(DB, "Initializing", None), (WEB, "Available", first)]
    assert certificates.states(100) == [(DB, "Initializing", None), (WEB, "Initializing", None)]
    assert certificates.request(WEB, Priority.REALTIME, now=100) == []


def test_no_key_shows_in_print() -> None:
    assert "key_pem" not in repr(issue(WEB, 0, 1))


STEPS = st.lists(
    st.tuples(st.sampled_from(["request", "start", "fetched", "failed", "forget"]), st.integers(0, 11)), max_size=120
)


@given(STEPS)
def test_whatever_happens_the_bound_holds_and_nobody_waits_for_ever(steps: list[tuple[str, int]]) -> None:
    certificates, running, now = Certificates(), set(), 0.0
    for step, number in steps:
        now += 0.3
        identity = Identity("td", "ns", str(number))
        if step == "request":
            certificates.request(identity, Priority(number % 3), now)
        elif step == "forget":
            certificates.forget(identity)
        elif step == "start" and (started := certificates.start(now)):
            assert started not in running
            running.add(started)
        elif step == "fetched" and identity in running:
            running.discard(identity)
            certificates.fetched(issue(identity, now, now + 5), now)
        elif step == "failed" and identity in running:
            running.discard(identity)
            certificates.failed(identity, "no", now, 0)
        assert len(running) <= MAX_FETCHES
    # From here on everything succeeds: then all that is wanted becomes available.
    for identity in running:
        certificates.fetched(issue(identity, now, now + 5000), now)
    while len(certificates.available(now)) < len(certificates.identities()):
        due = certificates.next_due_at()
        assert due is not None
        now = max(now, due)
        started = certificates.start(now)
        assert started is not None
        certificates.fetched(issue(started, now, now + 5000), now)
