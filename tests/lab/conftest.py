"""What a test of the lab takes for evidence is its own: flows and log lines of those before it are not shown to it."""

from datetime import UTC, datetime

import pytest

from tests.lab.mesh import Mesh


@pytest.fixture(autouse=True)
def _own_evidence() -> None:
    Mesh.evidence_since = datetime.now(UTC)
