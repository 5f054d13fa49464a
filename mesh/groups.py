"""An index whose keys stand for several values each, but mostly for one: a group is a dict only from its second member on.

Ten thousand workloads have as many addresses and names: a dict for each of them would be more than the workloads themselves.
"""

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar

_Outer = TypeVar("_Outer", bound=Hashable)
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Groups(Generic[_Key, _Value]):
    """Values by key, in the order in which they were added. A value is no dict."""

    def __init__(self, member_of: Callable[[_Value], Hashable]) -> None:
        """`member_of` tells the values of a group apart."""
        self._member_of = member_of
        self._groups: dict[_Key, _Value | dict[Hashable, _Value]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, key: _Key, value: _Value) -> None:
        """Add a value to a group, in the place of the same member."""
        group = self._groups.get(key)
        member = self._member_of(value)
        if group is None:
            self._groups[key] = value
        elif isinstance(group, dict):
            group[member] = value
        elif (other := self._member_of(group)) == member:
            self._groups[key] = value
        else:
            self._groups[key] = {other: group, member: value}

    def discard(self, key: _Key, member: Hashable) -> None:
        """Take a member out, and the group with its last one; what is not there is nothing."""
        group = self._groups.get(key)
        if group is None:
            return
        if isinstance(group, dict):
            group.pop(member, None)
            if len(group) == 1:
                (self._groups[key],) = group.values()
        elif self._member_of(group) == member:
            del self._groups[key]

    def of(self, key: _Key) -> Collection[_Value]:
        """The values of a group; none for an unknown key."""
        group = self._groups.get(key)
        if group is None:
            return ()
        return group.values() if isinstance(group, dict) else (group,)

    def __iter__(self) -> Iterator[_Key]:
        """All keys that have a value."""
        return iter(self._groups)


class PairGroups(Generic[_Outer, _Key, _Value]):
    """Groups by pairs, of which many have the first half in common: no pair is kept."""

    def __init__(self, member_of: Callable[[_Value], Hashable]) -> None:
        """As that of `Groups`."""
        self._member_of = member_of
        self._parts: dict[_Outer, Groups[_Key, _Value]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def add(self, outer: _Outer, key: _Key, value: _Value) -> None:
        """Add a value to a group, in the place of the same member."""
        part = self._parts.get(outer)
        if part is None:
            part = self._parts[outer] = Groups(self._member_of)
        part.add(key, value)

    def discard(self, outer: _Outer, key: _Key, member: Hashable) -> None:
        """Take a member out; what is not there is nothing."""
        part = self._parts.get(outer)
        if part is not None:
            part.discard(key, member)
            if not part:
                del self._parts[outer]

    def of(self, outer: _Outer, key: _Key) -> Collection[_Value]:
        """The values of a group; none for an unknown pair."""
        part = self._parts.get(outer)
        return part.of(key) if part is not None else ()
