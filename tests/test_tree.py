"""The folder tree explains the architecture: who may import whom, that files stay small enough to read, and links lead on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.pprof import parse

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
FOLDERS = ("mesh", "wire", "bpf", "agent", "ztunnel", "control", "cli", "lab", "bench")
MAY_IMPORT = {
    "mesh": {"mesh"},
    "wire": {"wire", "mesh"},
    "bpf": {"bpf", "mesh", "wire"},
    "agent": {"agent", "bpf", "mesh", "wire"},
    "ztunnel": {"ztunnel", "mesh", "wire"},
    "control": {"control", "mesh", "wire"},
    "cli": {"cli", "lab", "mesh", "wire"},
    "lab": {"lab", "mesh", "wire"},
    "bench": {"bench", "lab", "mesh", "wire"},
}
IMPURE = {"asyncio", "socket", "select", "time", "random", "secrets", "os", "subprocess", "threading", "logging", "grpc"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc", "types"}
LONGEST_FILE = 450
"""Lines; aim near 200. A longer file is two nouns."""


def sources() -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


IMPORTED = {path: imported(path) for path in sources()}


@pytest.mark.parametrize("path", IMPORTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in IMPORTED[path]} & set(FOLDERS)
    assert ours <= MAY_IMPORT[folder], f"{folder}/ must not import {sorted(ours - MAY_IMPORT[folder])}"


def test_the_vocabulary_is_pure() -> None:
    for path, names in IMPORTED.items():
        if path.relative_to(ROOT).parts[0] == "mesh":
            impure = {name.split(".")[0] for name in names} & IMPURE
            assert not impure, f"{path.relative_to(ROOT)} imports {sorted(impure)}: mesh/ holds values and functions only"


def brought_in_by(module: str) -> set[str]:
    """All that an interpreter has in memory that imported it."""
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100).stdout.split())


def test_the_data_worker_starts_light() -> None:
    """The worker's memory and start-up stay small: neither gRPC nor protobuf nor cryptography may come in by an import."""
    heavy = {"grpc", "google", "cryptography", "asyncio"} & {name.split(".")[0] for name in brought_in_by("ztunnel.worker")}
    assert not heavy, f"the data worker imports {sorted(heavy)}"


def test_a_proxy_listens_before_it_imports_the_rest() -> None:
    """Connections of its pods are refused until then, and wait from then on (ztunnel.front)."""
    rest = {"grpc", "cryptography", "sqlite3", "mesh.policy", "mesh.workload", "ztunnel.supervisor", "ztunnel.loop"}
    assert not rest & brought_in_by("ztunnel.__main__")


def test_what_a_cluster_and_its_mesh_are_called_by_default_is_said_once() -> None:
    """Elsewhere it would be a name that stays when the mesh has another one."""
    saying = {
        path
        for path in sources()
        if any(isinstance(one, ast.Constant) and one.value == "cluster.local" for one in ast.walk(parse(path.read_text())))
    }
    assert {path.relative_to(ROOT) for path in saying} == {Path("mesh/domains.py"), Path("bench/scale.py")}


def test_files_are_one_noun() -> None:
    for path in IMPORTED:
        assert path.stem not in VAGUE_NAMES, f"{path.relative_to(ROOT)}: name the noun it holds"
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST_FILE, f"{path.relative_to(ROOT)} has {lines} lines: it is more than one noun"


DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")])


def anchors(document: Path) -> set[str]:
    """Of its headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), f"{link}: no such file"
            assert not anchor or anchor in anchors(target), f"{link}: no such heading"
