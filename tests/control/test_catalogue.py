from collections.abc import Mapping

import pytest

from control import catalogue as catalogue_module
from control.catalogue import Catalogue
from mesh.manifests import ManifestSet, Problem, parse

pytestmark = pytest.mark.unit


def namespace(name: str) -> str:
    return f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"


SECRET = "{apiVersion: v1, kind: Secret, metadata: {name: s}}"


def test_texts_become_one_set_and_each_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    parse = catalogue_module.parse
    monkeypatch.setattr(catalogue_module, "parse", lambda files: read.extend(files) or parse(files))
    catalogue = Catalogue()
    first = catalogue.read({"a.yaml": namespace("a"), "b.yaml": namespace("b") + "\n---\n" + namespace("c")})
    assert list(first.objects) == ["Namespace a", "Namespace b", "Namespace c"] and not first.problems
    second = catalogue.read({"a.yaml": namespace("a"), "b.yaml": namespace("d")})
    assert read == ["a.yaml", "b.yaml", "b.yaml"]
    assert second.objects["Namespace a"] is first.objects["Namespace a"]
    [located] = second.located([Problem("", 0, "Namespace d", "x", "y")])
    assert (located.file, located.document) == ("b.yaml", 1)
    nowhere = [Problem("", 0, "", "x", "y"), Problem("", 0, "Namespace e", "x", "y"), Problem("z", 7, "Namespace d", "x", "y")]
    assert second.located(nowhere) == nowhere


def test_what_is_wrong_between_files() -> None:
    reading = Catalogue().read({"a.yaml": namespace("a"), "b.yaml": SECRET, "c.yaml": SECRET + "\n---\n" + namespace("a")})
    assert reading.is_refused
    assert [(one.file, one.document, one.warning) for one in reading.problems] == [("b.yaml", 1, True), ("c.yaml", 2, False)]
    assert reading.problems[1].reason == "defined twice: first in a.yaml, document 1"


def test_each_kind_that_is_skipped_is_warned_of_once_and_each_field_wherever_it_stands() -> None:
    wish = "{apiVersion: v1, kind: Service, metadata: {name: NAME}, spec: {ports: [{port: 80}], externalIPs: [x]}}"
    files = {name: f"{SECRET}\n---\n{wish.replace('NAME', name)}" for name in "ab"}
    reading = Catalogue().read(files | {"c": SECRET.replace("Secret", "ConfigMap")})
    assert [(one.file, one.object) for one in reading.problems] == [
        ("a", "Secret s"),
        ("a", "Service default/a"),
        ("b", "Service default/b"),
        ("c", "ConfigMap s"),
    ]
    assert not reading.is_refused


def test_the_same_mistake_in_two_files_is_named_in_both() -> None:
    reading = Catalogue().read({"a.yaml": "[", "b.yaml": "["})
    assert [one.file for one in reading.problems] == ["a.yaml", "b.yaml"] and reading.is_refused


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "MAX_OBJECTS", 2)
    reading = Catalogue().read({name: namespace(name) for name in "abc"})
    assert reading.is_refused and "3 objects, at most 2 are kept" in reading.problems[0].reason
    assert not Catalogue().read({name: namespace(name) for name in "ab"}).problems


def test_a_text_with_which_we_cannot_deal_is_refused_by_its_name_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(files: Mapping[str, str]) -> ManifestSet:
        if "b" in files:
            raise MemoryError("none left")
        return parse(files)

    texts, catalogue = {name: namespace(name) for name in "abc"}, Catalogue()
    with monkeypatch.context() as patched:
        patched.setattr(catalogue_module, "parse", without_memory)
        reading = catalogue.read(texts)
    assert list(reading.objects) == ["Namespace a", "Namespace c"]
    [problem] = reading.problems
    assert reading.is_refused and problem.file == "b"
    assert problem.reason == "cannot be read: no memory is left: raise the limit of weft-control or its container"
    assert list(catalogue.read(texts).objects) == ["Namespace a", "Namespace b", "Namespace c"]
