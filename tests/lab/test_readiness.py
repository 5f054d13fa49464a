import pytest

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
