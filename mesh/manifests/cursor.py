"""Reading one mapping of a manifest: every value is checked as it is taken, every mistake is noted with its path.

A mistake does not stop the reading: the value's default stands in for it, so that an author sees all mistakes at once; who
reads drops the object if there was any. What is left over at the end is a mistake too, unless it is known to have no effect.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

Check = Callable[[str], object]
_MAX_GUESSES = 100
"""Mistakes of one object after which nobody is told what a field might be called: a guess costs more than the reading."""


class Notes:
    """The mistakes and warnings about one object, in order: (field, reason, warning)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, bool]] = []
        self.mistakes = 0

    @property
    def refused(self) -> bool:
        """Whether anything was no mere warning."""
        return self.mistakes > 0


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    return f"{'the text' if isinstance(value, str) else 'the value'} {str(value)[:60]!r}"


class Cursor:
    """One mapping, and where it stands in its object."""

    __slots__ = ("_notes", "_taken", "_value", "path")

    def __init__(self, value: Mapping[str, Any], path: str, notes: Notes) -> None:
        self._value, self.path, self._notes = value, path, notes
        self._taken: set[str] = set()

    @property
    def mistakes(self) -> int:
        """How many mistakes of the object are noted by now."""
        return self._notes.mistakes

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, reason: str) -> None:
        """Note a mistake at a key."""
        self._notes.entries.append((self._at(key) if key else self.path, reason, False))
        self._notes.mistakes += 1

    def warn(self, key: str, reason: str) -> None:
        """Note that a key has no effect, or not the wanted one."""
        self._notes.entries.append((self._at(key) if key else self.path, reason, True))

    def __contains__(self, key: str) -> bool:
        """Whether there is a value (null is none)."""
        return self._value.get(key) is not None

    def _take(self, key: str) -> Any:
        self._taken.add(key)
        return self._value.get(key)

    def _expect(self, key: str, value: Any, what: str) -> None:
        self.refuse(key, f"expected {what}, got {_described(value)}")

    def _checked(self, key: str, value: Any, check: Check | None) -> str | None:
        if not isinstance(value, str):
            quote = ": put it in quotes" if isinstance(value, (int, float)) else ""
            self.refuse(key, f"expected text, got {_described(value)}{quote}")
            return None
        if "\0" in value:
            self.refuse(key, "text must not contain a NUL character")
            return None
        try:
            if check is not None:
                check(value)
        except ValueError as error:
            self.refuse(key, str(error))
            return None
        return value

    def text(self, key: str, default: str = "", *, check: Check | None = None, required: bool = False) -> str:
        """Take text; an empty one counts as absent."""
        value = self._take(key)
        if value is None or value == "":
            if required:
                self.refuse(key, "required")
            return default
        checked = self._checked(key, value, check)
        return default if checked is None else checked

    def choice(self, key: str, choices: Collection[str], default: str) -> str:
        """Take one of several words."""
        value = self.text(key, default)
        if value not in choices:
            self.refuse(key, f"{value!r} is none of {', '.join(choices)}")
            return default
        return value

    def number(self, key: str, low: int, high: int, default: int = 0, *, required: bool = False) -> int:
        """Take a whole number within bounds."""
        value = self._take(key)
        if value is None:
            if required:
                self.refuse(key, "required")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self._expect(key, value, "a whole number")
            return default
        if not low <= value <= high:
            self.refuse(key, f"{value} is not between {low} and {high}")
            return default
        return value

    def optional_number(self, key: str, low: int, high: int) -> int | None:
        """Take a whole number within bounds, or None where there is none."""
        return self.number(key, low, high) if key in self else None

    def flag(self, key: str, default: bool = False) -> bool:
        """Take a boolean."""
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._expect(key, value, "true or false")
            return default
        return value

    def port(self, key: str, *, names: Check | None = None) -> int | str | None:
        """Take a port's number, or where names are checked its name; None where there is none."""
        if isinstance(self._value.get(key), str) and names is not None:
            return self.text(key, check=names) or None
        return self.optional_number(key, 1, 65535)

    def child(self, key: str, *, required: bool = False) -> "Cursor | None":
        """Take a mapping; None where there is none."""
        value = self._take(key)
        if value is None:
            if required:
                self.refuse(key, "required")
            return None
        if not isinstance(value, dict):
            self._expect(key, value, "a mapping")
            return None
        return Cursor(value, self._at(key), self._notes)

    def children(self, key: str) -> list["Cursor"]:
        """Take a list of mappings."""
        cursors = []
        for index, value in enumerate(self._list(key)):
            if isinstance(value, dict):
                cursors.append(Cursor(value, f"{self._at(key)}[{index}]", self._notes))
            else:
                self._expect(f"{key}[{index}]", value, "a mapping")
        return cursors

    def texts(self, key: str, check: Check | None = None, *, required: str = "") -> tuple[str, ...]:
        """Take a list of texts; `required` says why it must not be empty."""
        values = self._list(key)
        if required and not values:
            self.refuse(key, f"required: {required}")
        taken = [self._checked(f"{key}[{index}]", value, check) for index, value in enumerate(values)]
        return tuple(value for value in taken if value is not None)

    def _list(self, key: str) -> list[Any]:
        value = self._take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self._expect(key, value, "a list")
            return []
        return value

    def _mapping(self, key: str, what: str) -> dict[Any, Any]:
        value = self._take(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._expect(key, value, what)
            return {}
        return value

    def text_map(self, key: str, keys: Check | None = None, values: Check | None = None) -> dict[str, str]:
        """Take a mapping of texts."""
        taken = {}
        for name, one in self._mapping(key, "a mapping of texts").items():
            where = f"{key}[{name}]"
            if self._checked(where, name, keys) is not None and (text := self._checked(where, one, values)) is not None:
                taken[name] = text
        return taken

    def number_map(self, key: str, keys: Check, low: int, high: int) -> dict[str, int]:
        """Take a mapping of whole numbers within bounds."""
        taken = {}
        for name, one in self._mapping(key, "a mapping of numbers").items():
            where = f"{key}[{name}]"
            if self._checked(where, name, keys) is None:
                continue
            if isinstance(one, bool) or not isinstance(one, int):
                self._expect(where, one, "a whole number")
            elif not low <= one <= high:
                self.refuse(where, f"{one} is not between {low} and {high}")
            else:
                taken[name] = one
        return taken

    def keyed_children(self, key: str) -> dict[str, "Cursor"]:
        """Take a mapping of mappings."""
        taken = {}
        for name, one in self._mapping(key, "a mapping").items():
            if isinstance(one, dict):
                taken[name] = Cursor(one, f"{self._at(key)}[{name}]", self._notes)
            else:
                self._expect(f"{key}[{name}]", one, "a mapping")
        return taken

    def numbers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """Take a list of whole numbers within bounds."""
        values = self._list(key)
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int):
                self._expect(f"{key}[{index}]", value, "a whole number")
            elif not low <= value <= high:
                self.refuse(f"{key}[{index}]", f"{value} is not between {low} and {high}")
        return tuple(value for value in values if isinstance(value, int))

    def nested(self, key: str, depth: int) -> list[Any]:
        """Take lists of lists, `depth` deep, of mappings."""

        def deeper(value: Any, where: str, left: int) -> Any:
            if not left and isinstance(value, dict):
                return Cursor(value, self._at(where), self._notes)
            if left and isinstance(value, list):
                return [deeper(one, f"{where}[{index}]", left - 1) for index, one in enumerate(value)]
            self._expect(where, value, "a list" if left else "a mapping")
            return [] if left else Cursor({}, where, self._notes)

        value = self._take(key)
        found: list[Any] = deeper(value, key, depth) if value is not None else []
        return found

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, whoever takes them."""
        return tuple(self._value)

    @property
    def known(self) -> list[str]:
        """The keys that were taken."""
        return sorted(self._taken)

    def finish(self, ignored: Collection[str] = (), harmless: Collection[str] = (), unknown: str = "") -> None:
        """End the reading: `ignored` keys are worth a warning, `harmless` ones are not, any other left over is a mistake."""
        for key, value in self._value.items():
            if key in self._taken or key in harmless or value is None:
                continue
            if key in ignored:
                self.warn(key, "has no effect in weft")
            else:
                self.refuse(key, unknown or self._no_such(key))

    def _no_such(self, key: str) -> str:
        from difflib import get_close_matches  # only here: the worth of a mistake, not of every start

        near = get_close_matches(key, self._taken, 1) if self.mistakes < _MAX_GUESSES else []
        return f"no such field: {near[0]} is the nearest" if near else "no such field"
