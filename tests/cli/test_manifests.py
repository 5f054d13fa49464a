"""`weft apply` and `weft delete` against a real gRPC server."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh.manifests.kinds import KINDS
from mesh.proto.control_pb2 import ApplyResponse, ObjectChange, Problem

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


def test_files_folders_and_standard_input(world: "World", tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "b.yml").write_text("b: 1")
    (tmp_path / "folder" / "below" / "a.yaml").write_text("a: 1")
    (tmp_path / "folder" / "notes.txt").write_text("no manifest")
    control = world.control()
    control.answer = ApplyResponse(changes=[ObjectChange(object="Pod demo/web", change="created")])
    result = world.weft("apply", "-f", str(tmp_path / "folder"), "-f", "-", input="c: 1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Pod demo/web created\n", "")
    assert [file.yaml for file in control.asked.files] == ["b: 1", "a: 1", "c: 1"]
    assert control.asked.files[0].name == str(tmp_path / "folder" / "b.yml") and not control.asked.dry_run


def test_problems_are_lines_with_file_document_object_field_and_reason(world: "World", tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("x: 1")
    world.control().answer = ApplyResponse(
        problems=[
            Problem(
                file="p.yaml",
                document=2,
                object="AuthorizationPolicy demo/web",
                field="spec.action",
                reason="CUSTOM is not served",
            ),
            Problem(file="p.yaml", document=3, object="Ingress demo/x", reason="kind skipped", warning=True),
        ]
    )
    result = world.weft("apply", "-f", str(tmp_path / "p.yaml"))
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.splitlines() == [
        "weft: p.yaml, document 2: AuthorizationPolicy demo/web: spec.action: CUSTOM is not served",
        "weft: warning: p.yaml, document 3: Ingress demo/x: kind skipped",
        "weft: nothing was changed: mend the above and repeat",
    ]
    answer = json.loads(world.weft("apply", "-f", str(tmp_path / "p.yaml"), "-o", "json").stdout)
    assert answer["changes"] == [] and answer["problems"][0]["field"] == "spec.action"


@pytest.mark.parametrize("command", ["apply", "delete"])
def test_manifests_without_an_object_are_a_mistake(world: "World", command: str) -> None:
    world.control()
    result = world.weft(command, "-f", "-", input="---\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "weft: manifests: no object in them; each needs apiVersion, kind and metadata\n"


def test_a_warning_alone_is_no_failure(world: "World", tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("x: 1")
    world.control().answer = ApplyResponse(
        changes=[ObjectChange(object="Pod a/b", change="configured")],
        problems=[Problem(file="p.yaml", reason="w", warning=True)],
    )
    result = world.weft("apply", "-f", str(tmp_path / "p.yaml"), "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "Pod a/b configured (dry run)\n")


def test_delete(world: "World", tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("x: 1")
    control = world.control()
    control.answer = ApplyResponse(changes=[ObjectChange(object="Pod a/b", change="deleted")])
    result = world.weft("delete", "-f", str(tmp_path / "p.yaml"), "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "Pod a/b deleted (dry run)\n") and control.asked.dry_run


def test_what_cannot_be_read(world: "World", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.manifests._MAX_ENTRIES", 4)
    for number in range(5):
        (tmp_path / "large" / str(number)).mkdir(parents=True)
    (tmp_path / "binary.yaml").write_bytes(b"ok\xff")
    (tmp_path / "empty").mkdir()
    for source, words in (
        ("missing.yaml", "missing.yaml: No such file or directory"),
        ("binary.yaml", "binary.yaml: not UTF-8 at byte 2"),
        ("empty", "empty: no manifest in this folder"),
        ("x" * 300, "File name too long"),
        ("large", "large: more than 4 files and folders below it; name a folder of manifests"),
    ):
        result = world.weft("apply", "-f", str(tmp_path / source))
        assert result.exit_code == 1 and words in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["apply", "delete"])
def test_a_name_that_is_empty_is_not_this_folder(world: "World", tmp_path: Path, command: str) -> None:
    (tmp_path / "other.yaml").write_text("x: 1")
    control = world.control()
    with contextlib.chdir(tmp_path):
        result = world.weft(command, "-f", "")
    assert (result.exit_code, control.asked) == (1, None)
    assert result.stderr == "weft: '': no name of a file or folder; is a variable empty?\n"


def test_no_control_plane(world: "World", tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("x: 1")
    result = world.weft("apply", "-f", str(tmp_path / "p.yaml"))
    assert result.exit_code == 1
    reason = f"not on this machine: nobody serves {world.places.control_socket}"
    assert result.stderr == f"weft: control plane: {reason}; start a mesh with: weft lab up\n"


def test_who_waited_in_vain_reads_for_how_long(world: "World", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.manifests._CHANGE_S", 0.2)
    (tmp_path / "p.yaml").write_text("x: 1")
    control = world.control()
    control.answers.clear()
    result = world.weft("apply", "-f", str(tmp_path / "p.yaml"))
    control.answers.set()
    assert result.exit_code == 1 and f"no answer on {world.places.control_socket} within 0.2 s; " in result.stderr


def test_a_file_whose_name_is_no_text_is_taken(world: "World", tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xff.yaml", "w") as file:
        file.write("x: 1")
    control = world.control()
    control.answer = ApplyResponse(changes=[ObjectChange(object="Pod demo/web", change="created")])
    result = world.weft("apply", "-f", str(folder))
    assert (result.exit_code, result.stderr) == (0, "")
    assert [(file.name, file.yaml) for file in control.asked.files] == [(rf"{folder}/\udcff.yaml", "x: 1")]


def test_a_file_is_required(world: "World") -> None:
    result = world.weft("apply")
    assert result.exit_code == 2 and "'-f' / '--filename'" in result.stderr


def test_the_help_names_every_kind(world: "World") -> None:
    words = world.weft("apply", "--help").stdout.replace(",", " ").replace(".", " ").split()
    assert KINDS.keys() - words == set()
