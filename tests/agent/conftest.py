"""Fixtures of the agent's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.node import Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node's stage, without agent and proxy."""
    made = Node(tmp_path / "node")
    try:
        made.build()
        yield made
    finally:
        print(made.log())  # shown beside what failed
        made.tear_down()
