"""What `weft lab` says to the lab's daemon."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.client import Lab, LabError
from wire.http_messages import parse_request

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("pod", ["shop/web", "shop/br owser", "shop/web&container=x", "shop/%41", "shop/ü", "shop/a\r\nx: y"])
def test_a_pods_name_reaches_the_daemon_as_it_was_written(monkeypatch: pytest.MonkeyPatch, pod: str) -> None:
    asked = []

    def call(self: Lab, method: str, path: str) -> None:
        asked.append(parse_request(f"{method} {path} HTTP/1.1\r\n\r\n".encode()))
        raise LabError("there is none")

    monkeypatch.setattr(Lab, "_call", call)
    with pytest.raises(LabError, match="there is none"):
        Lab().join(pod, ["true"], "main")
    assert (asked[0].path, asked[0].query) == ("/join", {"pod": pod, "container": "main"})


def test_a_log_and_a_node_are_not_both_asked_for(world: "World") -> None:
    result = world.weft("lab", "logs", "node-a/agent", "--node", "node-b")
    assert result.exit_code == 2 and "--node is about all logs of a node: leave it out, or node-a/agent" in result.stderr


@pytest.mark.parametrize("text", ["", "# a node, later\n---\n"])
def test_what_describes_nothing_brings_up_nothing(world: "World", tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.yaml").write_text(text)
    result = world.weft("lab", "up", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == "weft: manifests: no object in them; each needs apiVersion, kind and metadata\n"
