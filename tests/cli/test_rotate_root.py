"""`weft certificates rotate-root` against a real gRPC server."""

import json
from typing import TYPE_CHECKING

import pytest

from mesh.proto.control_pb2 import RootRotation, StatusResponse

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


def test_the_answer_says_when_the_new_root_signs(world: "World") -> None:
    control = world.control()
    result = world.weft("certificates", "rotate-root", "--overlap", "36h")
    assert result.stdout == "a new root is announced; it signs from 2026-01-01 00:00:00Z on (weft status)\n"
    assert control.asked.overlap_s == 36 * 3600
    answer = json.loads(world.weft("certificates", "rotate-root", "-o", "json").stdout)
    assert answer == {"phase": "announced", "until": "2026-01-01T00:00:00+00:00"}
    assert control.asked.overlap_s == 0, "control knows how long certificates live"


@pytest.mark.parametrize(
    ("overlap", "status", "words"),
    [
        ("1s", 1, "weft: control plane: an overlap of 1 s: certificates live up to 86400 s"),
        ("soon", 2, "not a duration: 'soon'"),
        ("-5m", 2, "-5m: write at most 4320h"),
        ("4321h", 2, "4321h: write at most 4320h"),
    ],
)
def test_an_overlap_that_cannot_be(world: "World", overlap: str, status: int, words: str) -> None:
    world.control()
    result = world.weft("certificates", "rotate-root", "--overlap", overlap)
    assert result.exit_code == status and words in result.stderr


@pytest.mark.parametrize("options", [["-o", "json"], ["--node", "node-a"]])
def test_what_would_be_ignored_is_refused(world: "World", options: list[str]) -> None:
    world.control()
    result = world.weft("certificates", *options, "roots")
    assert result.exit_code == 2 and f"{options[0]} is about the list of certificates: write it behind roots" in result.stderr


def test_the_roots_alone_or_with_the_phase(world: "World") -> None:
    control = world.control()
    control.status = StatusResponse(rotation=RootRotation(phase="signing", bundle_pem="PEM\nPEM\n"))
    assert world.weft("certificates", "roots").stdout == "PEM\nPEM\n"
    answer = json.loads(world.weft("certificates", "roots", "-o", "json").stdout)
    assert answer == {"phase": "signing", "roots": "PEM\nPEM\n"}
