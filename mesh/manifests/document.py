"""YAML text into plain values: mappings with text keys, lists, text, whole numbers, floats, booleans, null.

Built from the parser's events, not by a YAML constructor, so that nothing but these values can come out, and that size, depth
and aliases are bounded while reading: an alias costs as much as what it stands for. Scalars follow YAML 1.2's core schema
(`yes` and `22:22` are text), a key that occurs twice is an error, and merge keys (`<<`) work as in Kubernetes' tools. Tags of
one's own are refused, but for those that a reader names: `!Word value` is then the mapping `{Word: value}`, as in Rust's tools.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 8 << 20
"""Of one file: twice what a cluster's API server takes in one request, some 10,000 pods."""
MAX_NODES = 1_000_000
"""Values in one document, each alias counted as what it stands for: what MAX_BYTES of small scalars can hold."""
MAX_DEPTH = 64

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_NUMBER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    word: value
    for value, words in ((None, "null Null NULL"), (True, "true True TRUE"), (False, "false False FALSE"))
    for word in words.split()
}
_WORDS |= {"": None, "~": None}
_MAX_DIGITS = 40


class DocumentError(ValueError):
    """Text that is no acceptable YAML: `document` counts from 1, `line` too (0: not known)."""

    def __init__(self, document: int, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.document = document


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MAX_DIGITS:
        if _NUMBER.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def _scalar(event: Any) -> Any:
    if event.tag in (None, _CORE + "null", _CORE + "int", _CORE + "bool", _CORE + "float"):
        return event.value if event.style and event.tag is None else _plain(event.value)
    if event.tag in ("!", _CORE + "str"):
        return event.value
    raise ValueError(f"tag {event.tag!r} is not allowed")


def _as_written(event: Any) -> str:
    text: str = event.value
    return text


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is being filled."""

    container: Any
    anchor: str | None
    size: int = 1
    key: str | None = None
    """The key whose value comes next."""
    inherited: list[dict[str, Any]] = field(default_factory=list)
    """Mappings under `<<`."""
    word: str = ""
    """Its tag, where that is one of the words."""


class _Document:
    """One document that is being built."""

    def __init__(self, words: Collection[str], typed: bool) -> None:
        self.value: Any = None
        self._words = words
        self._scalar = _scalar if typed else _as_written
        self._frames: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._take_scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise ValueError(f"alias {event.anchor!r} stands for nothing that is complete here")
            self._add(*self._anchors[event.anchor])
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()

    def _take_scalar(self, event: Any) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.key is None and isinstance(frame.container, dict):
            self._take_key(frame, event)
            return
        word = self._word(event)
        value, size = ({word: event.value}, 2) if word else (self._scalar(event), 1)
        if event.anchor:
            self._anchors[event.anchor] = (value, size)
        self._add(value, size)

    def _word(self, event: Any) -> str:
        """The tag without its mark, where it is one of the words."""
        word = event.tag[1:] if event.tag and event.tag[0] == "!" else ""
        return word if word in self._words else ""

    @staticmethod
    def _take_key(frame: _Frame, event: Any) -> None:
        if event.value in frame.container:
            raise ValueError(f"key {event.value!r} occurs twice")
        frame.key = event.value

    def _open(self, event: Any) -> None:
        core = _CORE + ("map" if isinstance(event, yaml.MappingStartEvent) else "seq")
        word = self._word(event)
        if event.tag not in (None, "!", core) and not word:
            raise ValueError(f"tag {event.tag!r} is not allowed")
        if len(self._frames) >= MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        if self._frames and isinstance(self._frames[-1].container, dict) and self._frames[-1].key is None:
            raise ValueError("a key must be text")
        self._frames.append(_Frame({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor, word=word))

    def _close(self) -> None:
        frame = self._frames.pop()
        for mapping in frame.inherited:
            frame.container = mapping | frame.container
        if frame.word:
            frame.container, frame.size = {frame.word: frame.container}, frame.size + 1
        if frame.anchor:
            self._anchors[frame.anchor] = (frame.container, frame.size)
        # Its parts were counted one by one as they came.
        self._nodes -= frame.size - 1
        self._add(frame.container, frame.size)

    def _add(self, value: Any, size: int) -> None:
        self._nodes += size
        if self._nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values, aliases included")
        if not self._frames:
            self.value = value
            return
        frame = self._frames[-1]
        frame.size += size
        if isinstance(frame.container, list):
            frame.container.append(value)
        elif frame.key is None:
            raise ValueError("a key must be text, not an alias")
        elif frame.key == "<<":
            self._inherit(frame, value)
            frame.key = None
        else:
            frame.container[frame.key] = value
            frame.key = None

    @staticmethod
    def _inherit(frame: _Frame, value: Any) -> None:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(one, dict) for one in mappings):
            raise ValueError("'<<' takes a mapping or a list of mappings")
        frame.inherited.extend(mappings)


def documents(text: str, words: Collection[str] = (), typed: bool = True) -> Iterator[tuple[int, Any]]:
    """Read a file's documents one by one: (number from 1, value). `words`: tags that are allowed; not `typed`: all is text.

    Raises: DocumentError at the first document that is not acceptable; what follows in the file is not read.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise DocumentError(0, 0, f"{size} bytes: more than {MAX_BYTES} in one file")
    number, line = 0, 0
    document = _Document(words, typed)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark else line
            if isinstance(event, yaml.DocumentStartEvent):
                number, document = number + 1, _Document(words, typed)
            elif isinstance(event, yaml.DocumentEndEvent):
                yield number, document.value
            else:
                document.take(event)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else line
        raise DocumentError(max(number, 1), at, f"no valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise DocumentError(max(number, 1), line, f"no valid YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise DocumentError(max(number, 1), line, str(error)) from error
