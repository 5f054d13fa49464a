"""Some stories in each run; `make soak` tells many."""

from collections.abc import Iterator

import pytest

from tests.ztunnel.mesh_changes import Story
from tests.ztunnel.world import World, world

pytestmark = pytest.mark.kernel


@pytest.fixture
def mesh() -> Iterator[World]:
    with world("changes") as made:
        made.start()
        yield made


@pytest.mark.parametrize("seed", [2, 4, 8, 9])
def test_nothing_goes_past_a_waypoint_a_policy_or_mutual_tls_whatever_changes_meanwhile(seed: int, mesh: World) -> None:
    Story(seed, mesh).run()
    mesh.settle()
