"""Every target by its name."""

from tests.fuzz import control, files, peers

TARGETS = {target.name: target for target in (*peers.TARGETS, *control.TARGETS, *files.TARGETS)}
