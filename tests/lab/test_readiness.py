import asyncio
import errno
from pathlib import Path

import pytest

from lab import readiness as probing
from lab.launch import Launch
from lab.readiness import Readiness
from mesh.manifests import Probe

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("successes", "failures", "results", "ready"),
    [
        (1, 3, "+", "+"),
        (1, 3, "-", "-"),
        (1, 3, "+--+", "++++"),
        (1, 3, "+---+", "+++-+"),
        (2, 1, "+-+++", "---++"),
        (2, 2, "++-+--", "-++++-"),
    ],
)
def test_only_so_many_in_a_row_change_what_holds(successes: int, failures: int, results: str, ready: str) -> None:
    readiness = Readiness(Probe(tcp_port=1, success_threshold=successes, failure_threshold=failures))
    assert "".join("+" if readiness.count(one == "+") else "-" for one in results) == ready


def test_a_probe_that_cannot_be_made_is_a_failure_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broke(launch: Launch, timeout_s: float) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(probing, "run_joined", broke)
    asked = probing.ask(Probe(command=("true",)), Path("/nowhere"), (), Launch(("true",), "/nowhere"))
    assert "Too many open files" in asyncio.run(asked)
