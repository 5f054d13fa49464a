"""Every target by its name."""

from tests.fuzz import control, peers

TARGETS = {target.name: target for target in (*peers.TARGETS, *control.TARGETS)}
