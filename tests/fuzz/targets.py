"""Every target by its name."""

from tests.fuzz import control, files, greetings, peers

_ALL = (*peers.TARGETS, *greetings.TARGETS, *control.TARGETS, *files.TARGETS)
TARGETS = {target.name: target for target in _ALL}
assert len(TARGETS) == len(_ALL), "two targets of one name"
