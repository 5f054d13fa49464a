"""Every target by its name."""

from tests.fuzz import control, files, peers

_ALL = (*peers.TARGETS, *control.TARGETS, *files.TARGETS)
TARGETS = {target.name: target for target in _ALL}
assert len(TARGETS) == len(_ALL), "two targets of one name"
