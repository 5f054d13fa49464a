"""YAML comes out as plain values or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.manifests import document
from mesh.manifests.document import DocumentError, documents

pytestmark = pytest.mark.unit


def read(text: str) -> list[object]:
    return [value for _, value in documents(text)]


def reason(text: str) -> str:
    with pytest.raises(DocumentError) as refused:
        read(text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("{a: [1, -2, 0x10, 0o17], b: {c: d}}", {"a": [1, -2, 16, 15], "b": {"c": "d"}}),
        ("[true, false, null, ~, '', 'true', \"1\", 1.5, 1e3]", [True, False, None, None, "", "true", "1", 1.5, 1000.0]),
        (
            "[yes, no, on, off, y, 22:22, 2024-01-01, 1_000, 0777]",
            ["yes", "no", "on", "off", "y", "22:22", "2024-01-01", "1_000", 777],
        ),
        ("8080: x", {"8080": "x"}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_values(text: str, value: object) -> None:
    assert read(text) == [value]


def test_documents_are_counted_from_one_and_empty_ones_count() -> None:
    text = "# nothing yet\n---\na: 1\n---\n---\nb: 2\n"
    assert list(documents(text)) == [(1, {"a": 1}), (2, None), (3, {"b": 2})]
    assert read("") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' occurs twice"),
        ("a: !!python/object:os.system x", "line 1: tag 'tag:yaml.org,2002:python/object:os.system' is not allowed"),
        ("!!binary aGk=", "line 1: tag 'tag:yaml.org,2002:binary' is not allowed"),
        ("!!set {a}", "line 1: tag 'tag:yaml.org,2002:set' is not allowed"),
        ("a: *x", "line 1: alias 'x' stands for nothing that is complete here"),
        ("&x [*x]", "line 1: alias 'x' stands for nothing that is complete here"),
        ("? [a]\n: b", "line 1: a key must be text"),
        ("{<<: 1}", "line 1: '<<' takes a mapping or a list of mappings"),
        ("[" * 65, "line 1: nested deeper than 64"),
    ],
)
def test_refusals(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_tags_that_a_reader_names_are_keys_and_others_refused() -> None:
    text = "[!Exact x, !Exact '1', !Exact 1, !Presence [], &a !Map {b: !Exact c}, *a]"
    mapped = {"Map": {"b": {"Exact": "c"}}}
    exact = [{"Exact": "x"}, {"Exact": "1"}, {"Exact": "1"}]
    assert list(documents(text, ("Exact", "Presence", "Map"))) == [(1, [*exact, {"Presence": []}, mapped, mapped])]
    assert reason(text) == "line 1: tag '!Exact' is not allowed"
    with pytest.raises(DocumentError, match="tag '!Map' is not allowed"):
        list(documents(text, ("Exact", "Presence")))


def test_syntax_errors_say_where() -> None:
    with pytest.raises(DocumentError, match="line 4: no valid YAML") as refused:
        read("a: 1\n---\nb:\n  - c: ]\n")
    assert refused.value.document == 2


def test_aliases_cost_what_they_stand_for() -> None:
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "aliases included" in reason("\n".join(levels))


def test_a_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_BYTES", 10)
    assert reason("a: " + "é" * 10) == "23 bytes: more than 10 in one file"
    monkeypatch.setattr(document, "MAX_BYTES", 1000)
    monkeypatch.setattr(document, "MAX_NODES", 10)
    assert read("[1, 2, 3, 4, 5, 6, 7, 8, 9]") == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert "more than 10 values" in reason("[1, 2, 3, 4, 5, 6, 7, 8, [9, 10, 11]]")


@given(st.text(max_size=200) | st.text("[]{}:,-&*!|>'\"#? \n\tab1~<x", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        for number, _ in documents(text, ("x", "1")):
            assert number >= 1
    except DocumentError as refused:
        assert str(refused)
