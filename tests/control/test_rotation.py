"""A mesh's roots over time: nobody is signed for by a root that somebody with a valid certificate does not know."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from control.authority import Authority, make_root
from control.rotation import Phase, Roots, advance, begin, granted, least_overlap_s

pytestmark = pytest.mark.unit

START = datetime(2026, 3, 1, tzinfo=UTC)
START_S = START.timestamp()


def root(number: int = 1) -> Authority:
    return make_root(ec.generate_private_key(ec.SECP256R1()), "cluster.local", START, number)


ROOT = root()


def rotated(life_s: int = 100) -> list[Roots]:
    """One whole rotation, phase by phase."""
    announced = begin(Roots(root(), expired_s=START_S + life_s), root(2), life_s, START_S)
    signing = advance(announced, START_S + life_s, 3)
    return [announced, signing, advance(signing, START_S + 2 * life_s, 4)]


def blocks(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def test_the_phases_and_what_is_trusted_in_each() -> None:
    announced, signing, steady = rotated()
    old, new = announced.signer, announced.successor
    assert new is not None
    assert [one.phase for one in (announced, signing, steady)] == [Phase.ANNOUNCED, Phase.SIGNING, Phase.STEADY]
    assert blocks(announced.bundle_pem) == [old.certificate, new.certificate]
    assert blocks(signing.bundle_pem) == [new.certificate, old.certificate]
    assert blocks(steady.bundle_pem) == [new.certificate] and steady.signer is signing.signer is new
    assert [one.next_at_s for one in (announced, signing, steady)] == [START_S + 100, START_S + 200, None]


def test_nothing_moves_before_its_time() -> None:
    announced = rotated()[0]
    assert advance(announced, START_S + 99.9, 1) is announced
    assert advance(Roots(root()), START_S, 1).phase is Phase.STEADY


def test_an_overlap_shorter_than_a_certificates_life_is_refused_and_so_is_a_second_rotation() -> None:
    with pytest.raises(ValueError, match=r"an overlap of 99 s: .* valid for 100 s more, so write 100s to"):
        begin(Roots(root(), expired_s=START_S + 99.5), root(2), 99, START_S)
    with pytest.raises(ValueError, match="an overlap of 0 s"):
        begin(Roots(root()), root(2), 0, START_S)
    for running in rotated()[:2]:
        with pytest.raises(ValueError, match=f"a rotation is under way .{running.phase.value}"):
            begin(running, root(5), 100, START_S)


def test_the_second_overlap_covers_what_was_granted_during_the_first() -> None:
    announced = begin(Roots(root()), root(2), 10, START_S)
    later = advance(granted(announced, 70, START_S + 9), START_S + 10, 3)
    assert later.next_at_s == START_S + 10 + 76, "70 s and a tenth, from a second ago"


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 100)), min_size=1, max_size=40))
def test_no_leaf_outlives_an_overlap(grants: list[tuple[float, int]]) -> None:
    roots, now_s, ends = Roots(ROOT), START_S, [START_S]
    for pause_s, life_s in grants:
        now_s += pause_s
        roots = granted(roots, life_s, now_s)
        ends.append(now_s + life_s)
        assert max(ends) <= now_s + least_overlap_s(roots, now_s) <= max(ends) + 11


def test_most_grants_need_no_writing_and_a_long_life_is_forgotten_when_it_has_passed() -> None:
    roots = granted(Roots(ROOT), 1000, START_S)
    assert granted(roots, 1000, START_S + 99) is roots and granted(roots, 10, START_S + 1080) is roots
    assert granted(roots, 1000, START_S + 101).expired_s == START_S + 101 + 1100
    assert (least_overlap_s(roots, START_S + 1000), least_overlap_s(roots, START_S + 1101)) == (100, 0)


def test_who_knows_an_older_root_only_finds_a_way_to_the_servers_leaf() -> None:
    first = rotated()[2]
    second = advance(begin(first, root(5), 100, START_S + 300), START_S + 400, 6)
    chain = blocks(second.server_chain("", START))
    assert len(chain) == 2
    chain[0].verify_directly_issued_by(first.signer.certificate)
    assert chain[0].public_key() == second.signer.certificate.public_key()
    assert chain[1].public_key() == first.signer.certificate.public_key()
    assert second.server_chain("leaf", START + timedelta(days=4000)) == "leaf", "an expired way is none"


def test_a_root_is_replaced_a_year_before_it_expires() -> None:
    roots = Roots(root())
    end = roots.signer.certificate.not_valid_after_utc
    assert not roots.expires_soon(end - timedelta(days=366)) and roots.expires_soon(end - timedelta(days=364))
    assert not rotated()[0].expires_soon(end), "its successor is on its way already"
