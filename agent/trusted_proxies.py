"""Whose sockets are the proxy's: of each cgroup with a proxy that is connected, or was and has not ended.

A proxy that is told to end lets go of its ZDS connection at once and then serves what is open for a while; the connections that
it still makes to applications must be known for its own.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol

from agent.zds_connection import ProxyPeer


class Cgroups(Protocol):
    """The kernel's list of trusted cgroups; see bpf.redirect."""

    def proxies(self) -> frozenset[int]:
        """Those that are trusted."""

    def add_proxy(self, cgroup_id: int) -> None:
        """Trust one."""

    def remove_proxy(self, cgroup_id: int) -> None:
        """Trust it no longer."""


class TrustedProxies:
    """Owns a pidfd of each living proxy that has ever been connected. Use inside an event loop."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._connected: frozenset[int] = frozenset()
        self._living: dict[ProxyPeer, int] = {}

    def connected(self, peers: Sequence[ProxyPeer]) -> None:
        """These proxies are connected now, and no others. Raises: OSError when the kernel's list has no room."""
        for peer in peers:
            if peer not in self._living:
                self._watch(peer)
        self._connected = frozenset(peer.cgroup_id for peer in peers)
        self._apply()

    def _watch(self, peer: ProxyPeer) -> None:
        try:
            pidfd = os.pidfd_open(peer.pid)
        except OSError:
            return  # gone already; its connection's end is still to be read
        self._living[peer] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, peer)

    def _ended(self, peer: ProxyPeer) -> None:
        self._forget(peer)
        self._apply()

    def _forget(self, peer: ProxyPeer) -> None:
        pidfd = self._living.pop(peer)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)

    def _apply(self) -> None:
        wanted, present = self._connected | {peer.cgroup_id for peer in self._living}, self._cgroups.proxies()
        if wanted:  # the last one stays: without listeners it can do nothing, and its successor may well come in its cgroup
            for cgroup in present - wanted:  # first: the list is short
                self._cgroups.remove_proxy(cgroup)
        for cgroup in wanted - present:
            self._cgroups.add_proxy(cgroup)

    def close(self) -> None:
        """Watch nobody any more; the kernel's list stays as it is."""
        for peer in list(self._living):
            self._forget(peer)
