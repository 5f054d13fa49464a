"""An index of groups is a dict of dicts that takes less memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.groups import Groups, PairGroups

pytestmark = pytest.mark.unit

_CHANGES = st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.integers(0, 3), st.integers()))


@given(_CHANGES)
def test_groups_are_a_dict_of_dicts(changes: list[tuple[bool, str, int, int]]) -> None:
    groups: Groups[str, tuple[int, int]] = Groups(lambda value: value[0])
    plain: dict[str, dict[int, tuple[int, int]]] = {}
    for adds, key, member, content in changes:
        if adds:
            groups.add(key, (member, content))
            plain.setdefault(key, {})[member] = (member, content)
        else:
            groups.discard(key, member)
            plain.get(key, {}).pop(member, None)
            if not plain.get(key):
                plain.pop(key, None)
        assert set(groups) == set(plain) and len(groups) == len(plain)
        assert all(list(groups.of(key)) == list(plain.get(key, {}).values()) for key in "ab")


@given(_CHANGES)
def test_groups_by_pairs_are_groups_by_tuples(changes: list[tuple[bool, str, int, int]]) -> None:
    pairs: PairGroups[bool, str, tuple[int, int]] = PairGroups(lambda value: value[0])
    plain: Groups[tuple[bool, str], tuple[int, int]] = Groups(lambda value: value[0])
    for adds, key, member, content in changes:
        outer = content > 0
        if adds:
            pairs.add(outer, key, (member, content))
            plain.add((outer, key), (member, content))
        else:
            pairs.discard(outer, key, member)
            plain.discard((outer, key), member)
        assert len(pairs) == len(plain)
        assert all(list(pairs.of(o, k)) == list(plain.of((o, k))) for o in (True, False) for k in "ab")
