"""How many descriptors a process may have, and what to say where there are no more."""

import errno
import resource

MENDS = {errno.EMFILE: "raise the limit (RLIMIT_NOFILE)", errno.ENFILE: "raise the system's limit (fs.file-max)"}
SAYS_SO_EVERY_S = 30.0
"""Who lacks them tries again and again."""


def take_all() -> int:
    """Raise the limit to what the system grants: that many. Systems grant 1024 at first, which a large node or mesh exceeds."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
