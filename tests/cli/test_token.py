"""`weft token` against a real gRPC server."""

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


def test_token_alone_or_with_the_root(world: "World") -> None:
    world.control()
    assert world.weft("token", "node-a").stdout == "token of node-a\n"
    answer = json.loads(world.weft("token", "node-a", "-o", "json").stdout)
    assert answer == {"node": "node-a", "token": "token of node-a", "root": "PEM"}


def test_controls_own_words_about_an_unknown_node(world: "World") -> None:
    world.control()
    result = world.weft("token", "nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "weft: control plane: Node nowhere is no object of the mesh: apply it first\n"
