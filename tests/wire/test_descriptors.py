"""How many descriptors a process may have."""

import resource

import pytest

from wire.descriptors import take_all

pytestmark = pytest.mark.unit


def test_all_that_the_system_grants_are_taken() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        assert take_all() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
