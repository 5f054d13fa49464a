"""What programs must know before they take the place of older ones.

Maps whose layout changed begin empty: the first connections would pass the mesh by, or be refused. Pods come back from the
records on disk, listeners from the proxies that have them.
"""

import logging
import os
from collections.abc import Iterable

from agent import namespaces
from agent.hands import redirect_of
from agent.records import Records
from bpf.redirect import Redirect
from wire.cgroup import processes_of
from wire.netns import open_home

_log = logging.getLogger(__name__)


def restore(redirect: Redirect, records: Records, anew: bool) -> None:
    """Have all in the kernel that it had; what is there stays. Idempotent. `anew`: other programs than before will ask."""
    _restore_pods(redirect, records)
    if anew or redirect.unregistered_listeners():
        register_sockets(redirect, processes_of(redirect.proxies()))


def proxies_are_back(redirect: Redirect, processes: Iterable[int]) -> None:
    """Proxies that connect may have listened before, and their cgroups may have been forgotten."""
    if redirect.unregistered_listeners():
        register_sockets(redirect, processes)


def register_sockets(redirect: Redirect, processes: Iterable[int]) -> None:
    """Have what proxies listen on in pods known to the kernel; a failure is told, and these pods stay refused."""
    try:
        count = redirect.register_sockets(processes)
    except OSError as error:
        _log.error("pods whose proxy runs already are refused until it is restarted: %s", error)
        return
    if count:
        _log.info("%d sockets of proxies that run already are known", count)


def _restore_pods(redirect: Redirect, records: Records) -> None:
    """A pod whose inbound link lives was captured: it must not be out of the mesh for a moment."""
    lost = {one.pod.uid for one in redirect.enrolled() if one.steered and not one.pod.netns_cookie}
    if not lost:
        return
    home_fd = open_home()
    try:
        for pod in (record.pod for record in records.read()[0] if record.pod.uid in lost):
            netns_fd = namespaces.find_again(pod, home_fd)
            if netns_fd is None:
                continue
            try:
                redirect.enrol(redirect_of(pod, capture=True), netns_fd)
            finally:
                os.close(netns_fd)
    finally:
        os.close(home_fd)
