"""How many descriptors a process may have."""

import resource


def take_all() -> int:
    """Raise the limit to what the system grants: that many. Systems grant 1024 at first, which a large node or mesh exceeds."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
