"""What a former daemon made and no object asks for any more: removed once, at the daemon's start."""

import logging

from lab import teardown
from lab.desired import Desired
from lab.layout import Layout

_log = logging.getLogger(__name__)


def remove(layout: Layout, wanted: Desired) -> list[tuple[str, str]]:
    """Remove nodes that are not wanted, and pods that are not wanted or run on another node: (node, uid) of these pods."""
    removed = []
    for node in teardown.nodes(layout):
        for pod in teardown.pods_of_node(layout, node):
            wish = wanted.pods.get(pod)
            if wish is None or wish.node != node:
                _log.info("removing %s of node %s, which nothing asks for", pod, node)
                uid = network_owner(layout, pod)
                if uid:
                    removed.append((node, uid))
                teardown.remove_pod(layout, node, pod)
        if node not in wanted.nodes:
            _log.info("removing node %s, which nothing asks for", node)
            teardown.remove_node(layout, node)
    return removed


def network_owner(layout: Layout, pod: str) -> str:
    """The uid of the life for which a pod's network was made; empty when there is none."""
    try:
        return (layout.pod_run(pod) / "network").read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return ""
