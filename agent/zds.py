"""The ZDS server: proxies connect, learn of every pod, and are kept up to date.

A new pod goes to the newest connection only, so that an old proxy that drains beside its successor takes on nothing new; a
withdrawal goes to all.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from agent.zds_connection import NoProxy, ProxyAway, ProxyPeer, ZdsConnection
from agent.zds_messages import MAX_PACKET_BYTES, Announcement
from wire.fds import PacketStream
from wire.unix_socket import bind

ACCEPT_INTERVAL_S = 0.2
_BACKLOG = 8
_log = logging.getLogger(__name__)


class Pods(Protocol):
    """Who knows the pods and wants to hear how the proxy takes them."""

    def snapshot(self) -> tuple[Sequence[Announcement], Sequence[str]]:
        """Pods to add, and uids to keep without a namespace."""

    def netns_of(self, uid: str) -> int | None:
        """A pod's namespace."""

    def told(self, uid: str, reason: str) -> None:
        """The newest proxy answered for a pod; empty: it serves it."""

    def proxy_changed(self) -> None:
        """The newest proxy is another one, or gone: nobody has been told of anything."""


class _Live(NamedTuple):
    connection: ZdsConnection
    peer: ProxyPeer
    since_unix_s: int


class ZdsServer:
    """Listens at a path; `on_proxies` gets all connected proxies, before a new one is told of any pod.

    A new one with which it raises OSError is not taken.
    """

    def __init__(self, path: Path, pods: Pods, on_proxies: Callable[[list[ProxyPeer]], None]) -> None:
        self._path = path
        self._pods = pods
        self._on_proxies = on_proxies
        self._live: list[_Live] = []
        self._syncing: set[ZdsConnection] = set()
        self.last_end = ""
        """Why the last connection that ended did; empty: none has."""

    async def serve(self) -> None:
        """Accept proxies until cancelled; at most five a second, as one that fails at once would otherwise keep us busy."""
        listener = self._listen()
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    sock = await _accept(listener)
                    if sock is not None:
                        group.create_task(self._serve_one(sock))
                    await asyncio.sleep(ACCEPT_INTERVAL_S)
            finally:
                # Before the connections end: a proxy that comes back at once must find the next agent, not this one.
                self._path.unlink(missing_ok=True)
                listener.close()

    def _listen(self) -> socket.socket:
        listener = bind(self._path, kind=socket.SOCK_SEQPACKET)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        return listener

    async def _serve_one(self, sock: socket.socket) -> None:
        stream = PacketStream(sock, MAX_PACKET_BYTES)
        connection = ZdsConnection(stream, self._pods.netns_of)
        peer: ProxyPeer | None = None
        try:
            peer = await connection.greet()
            self._enter(connection, peer)
            pods, kept = self._pods.snapshot()
            await connection.run(pods, kept, self._told_by(connection), lambda: self._syncing.discard(connection))
        except (ProxyAway, OSError) as away:
            who = f"proxy (process {peer.pid})" if peer else "somebody on the proxy's socket"
            _log.warning("%s is away: %s", who, away)
            self.last_end = str(away)
        finally:
            stream.close()
            self._leave(connection)

    def _told_by(self, connection: ZdsConnection) -> Callable[[str, str], None]:
        def told(uid: str, reason: str) -> None:
            if self._is_newest(connection):
                self._pods.told(uid, reason)

        return told

    def _is_newest(self, connection: ZdsConnection) -> bool:
        return bool(self._live) and self._live[-1].connection is connection

    def _enter(self, connection: ZdsConnection, peer: ProxyPeer) -> None:
        _log.info("proxy connected: process %d, cgroup %d", peer.pid, peer.cgroup_id)
        self._live.append(_Live(connection, peer, int(time.time())))
        self._syncing.add(connection)
        self._on_proxies([one.peer for one in self._live])
        self._pods.proxy_changed()

    def _leave(self, connection: ZdsConnection) -> None:
        if all(one.connection is not connection for one in self._live):
            return
        newest = self._is_newest(connection)
        self._live = [one for one in self._live if one.connection is not connection]
        self._syncing.discard(connection)
        if newest:
            self._pods.proxy_changed()
        try:
            self._on_proxies([one.peer for one in self._live])
        except OSError as error:  # as for the proxy that leaves, perhaps: no reason to leave all others
            _log.error("which proxies are trusted is not up to date: %s", error)

    @property
    def newest(self) -> "ProxyPeer | None":
        """The newest proxy's process; None: no proxy is connected."""
        return self._live[-1].peer if self._live else None

    @property
    def connected_unix_s(self) -> int:
        """Since when the newest proxy is there; 0: none is."""
        return self._live[-1].since_unix_s if self._live else 0

    @property
    def synced(self) -> bool:
        """Whether the newest proxy acknowledged its snapshot."""
        return bool(self._live) and self._live[-1].connection not in self._syncing

    async def add(self, pod: Announcement) -> None:
        """Have the newest proxy serve a pod. Raises: NoProxy; ProxyAway with the reason when it does not serve it."""
        if not self._live:
            raise NoProxy("no proxy is connected")
        connection = self._live[-1].connection
        await connection.add(pod)
        if not self._is_newest(connection):
            raise ProxyAway("another proxy took over meanwhile")

    async def delete(self, uid: str) -> None:
        """Have no proxy serve a pod any more; one that does not answer is logged: it learns at its next snapshot."""
        told = await asyncio.gather(*(one.connection.delete(uid) for one in self._live), return_exceptions=True)
        for away in told:
            if isinstance(away, ProxyAway):
                _log.warning("withdrawal of pod %s: %s", uid, away)
            elif away is not None:
                raise away


async def _accept(listener: socket.socket) -> socket.socket | None:
    """The next connection; None where it cannot be taken now, for want of a descriptor: it waits in the queue."""
    try:
        return (await asyncio.get_running_loop().sock_accept(listener))[0]
    except OSError as error:
        _log.error("a proxy that connects has to wait: %s", error)
        return None
