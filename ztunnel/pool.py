"""Outgoing tunnels of one pod, shared by its connections to the same peer.

A tunnel is found by who asks (identity and address) and who must answer (identities and address). One is made at a time for
each such key; who comes meanwhile waits for it. A tunnel that is full, or has said or heard GOAWAY, is passed over; one that
nobody uses is given back after five minutes, or when its peer is gone; one whose peer's address is another pod's, at once.

What shares a tunnel with bulk waits behind up to a stream's window of it in the other end's socket: 3 ms at 1 GB/s. So who
comes while bulk flows gets another tunnel, of two at most to the same peer, as long as one of them is calm or can be made.
Where the window of all streams together is full, who comes would wait for applications that may read nothing, for ever: it
gets another tunnel, whatever their number, and goes into a full one only if no other comes while that one has yet to show it.
Who came before, and has moved nothing by then, goes on in another one too; who cannot, and would speak, is told after a while.
"""

import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from mesh.identity import Identity
from mesh.workload import Address, Workload
from ztunnel.allowance import Allowance
from ztunnel.connection_record import Flag
from ztunnel.dial import Dial, text_of
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.http2 import Connection
from ztunnel.limits import Held
from ztunnel.node import Node
from ztunnel.pod_netns import Netns
from ztunnel.stream import TunnelStream
from ztunnel.tls import Credentials, check_server
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified

MAX_WAITING = 4096
WAITERS_PER_TURN = 8
"""0.1 ms each, and thousands may wait for one tunnel: where it offends, it is greeted late."""
_APART = 2
"""Up to so many tunnels with room are there for one key, for the sake of who would wait behind bulk."""
_BULK_BYTES, _BULK_BYTES_PER_S = 1 << 20, 8 << 20
"""What a tunnel moves in large frames, at once and for ever after, and is calm all the same."""
_PATIENCE_S, _CONTENT_S = 0.25, 10.0
"""Who waits longer for another tunnel goes beside bulk after all, and so does whoever comes for a while after."""
_STALLED_S = 0.25
"""A tunnel with a full window that nobody opens for so long takes no more streams: applications do not read what fills it."""


class Key(NamedTuple):
    """What must be equal for two connections to share a tunnel."""

    source: Identity
    expected: frozenset[str]
    source_address: Address
    address: Address
    port: int


class Waiter(Protocol):
    """Who wants to open a stream."""

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """Open it now: there is room for one."""

    def no_tunnel(self, flag: Flag, error: str) -> None:
        """There is none."""

    def is_there(self) -> bool:
        """Whether anybody still wants it: asked of who had to wait; else it has ended."""


class _Making:
    """A tunnel in the making, and then the one who answers for it."""

    def __init__(self, pool: "Pool", key: Key, credentials: Credentials) -> None:
        self.pool = pool
        self.key = key
        self.credentials = credentials
        self.peer: tuple[str, str, str] | None = None
        """Which pod had the address when it took the call; None: none, as far as was known."""
        self.waiting: dict[Waiter, None] = {}
        self.dial: Dial | None = None
        self.tunnel: Tunnel | None = None
        self.ready = False
        self.idle_since = 0.0
        self.content_until = 0.0
        """Until then it will do, bulk or not."""
        self._quiet = Allowance(_BULK_BYTES, _BULK_BYTES_PER_S)
        self._was_quiet = True
        self._seen_bytes = 0
        self._full_at, self._full_since = -1, 0.0
        """What the two ends had granted when a window was first seen to be full, and when that was."""

    def room(self, most: int) -> bool:
        """Whether it takes one more stream, of `most`."""
        http = self.tunnel.http if self.tunnel is not None else None
        return http is not None and bool(http.room) and len(http.streams) < most and (_flows(http) or not self._stalled(http))

    def _stalled(self, http: Connection) -> bool:
        """Whether its window, which is full, has been so for long: who comes would wait for applications that read nothing.

        Where no stream is left, its peer grants nothing to anybody: another tunnel for each connection would not help.
        """
        if not http.streams:
            return False
        now = self.pool.node.loop.now
        if (granted := http.granted + http.widened) != self._full_at:
            self._full_at, self._full_since = granted, now
        return now - self._full_since >= _STALLED_S

    def relieve(self) -> None:
        """Where a window stays full, those who have moved nothing yet go another way, or end after a while."""
        assert self.tunnel is not None
        http = self.tunnel.http
        if _flows(http) or not self._stalled(http):
            return
        node = self.pool.node
        lost = node.loop.now - self._full_since >= node.config.tuning.connect_timeout_s
        error = f"connection timed out: applications do not read what fills the tunnel to {self.key.address}" if lost else ""
        for stream in list(http.streams.values()):
            if isinstance(stream, TunnelStream) and stream.is_stuck:
                stream.leave(error)

    def calm(self, now: float) -> bool:
        """Whether its windows are open and none of its streams moves bulk, or that is no reason for another tunnel now."""
        assert self.tunnel is not None
        http = self.tunnel.http
        moved = http.bulk_bytes - self._seen_bytes
        if moved or not self._was_quiet:
            self._seen_bytes += moved
            if http.streams:
                self._was_quiet = self._quiet.spend(now, min(moved, 2 * _BULK_BYTES))
        if not http.streams:
            return True
        return (self._was_quiet and _flows(http)) or now < self.content_until

    def connected(self, sock: socket.socket) -> None:
        self.dial = None
        self.peer = _pod(self.pool.owner_of(self.key))
        node = self.pool.node
        end = node.hellos.take(self.credentials)
        tunnel = Tunnel(node.loop, sock, end, False, self, node.client_handshakes, self.key.address, self.pool.held)
        if tunnel.open:
            self.tunnel = tunnel
            node.add_tunnel(tunnel)

    def not_connected(self, flag: Flag, error: str) -> None:
        self.dial = None
        self.pool.failed(self, flag, error)

    def end(self, error: str) -> None:
        """End it now, wherever it stands."""
        if self.tunnel is not None:
            self.tunnel.end(error)
        elif self.dial is not None:
            self.dial.cancel()
            self.not_connected("-", error)

    def check_peer(self, tunnel: Tunnel, peer: Verified) -> Identity:
        self.pool.node.revocations.check(tunnel.server, peer.chain)
        return check_server(peer.names, self.key.expected, self.pool.node.domains_of(self.key.source))

    def established(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.ready = True
        now = self.pool.node.vault.find(self.key.source)
        if now is None:
            tunnel.end(f"{self.key.source} has no certificate any more")
            return
        if now is not self.credentials and not tunnel.is_believed_by(now.authorities):
            self.credentials = now
            tunnel.drain()  # by a root that ceased to count meanwhile: who waits has another one made
        self.pool.made(self)
        node = self.pool.node  # when the request is on its way
        node.loop.afterwards.append((partial(node.hellos.prepare, self.credentials), node.hellos))

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        return None  # only a server is asked

    def retired(self, tunnel: Tunnel) -> None:
        if not tunnel.http.streams:
            self.idle_since = self.pool.node.loop.now

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        self.tunnel = None
        self.pool.node.remove_tunnel(tunnel)
        self.pool.failed(self, flag, f"io error: {error}" if not self.ready else error)


class Pool:
    """One per pod."""

    def __init__(self, node: Node, netns: Netns, held: Held) -> None:
        self.node = node
        self.held = held
        """On whose account bytes wait."""
        self._netns = netns
        self._streams = node.config.tuning.pool_streams
        self._ready: dict[Key, list[_Making]] = {}
        self._last: tuple[Key | None, list[_Making]] = None, []
        """Of `_ready`, what was asked for last: mostly the same again, and a key's hash is half of looking it up."""
        self._making: dict[Key, _Making] = {}
        self._left: dict[Waiter, Callable[[Waiter], None]] = {}
        """Who has yet to be told what became of the tunnel, and how."""

    def request(self, key: Key, credentials: Credentials, waiter: Waiter) -> None:
        """Give the waiter a tunnel with room: now, or when it is made."""
        now = self.node.loop.now
        busy = []
        for member in self._last[1] if key is self._last[0] else self._members(key):
            if member.room(self._streams):
                if member.calm(now):
                    break
                busy.append(member)
        else:
            moving = [one for one in busy if one.tunnel is not None and _flows(one.tunnel.http)]
            if len(busy) < _APART or not moving:
                self._wait(key, credentials, waiter, bool(busy))
                return
            member = moving[0]
        assert member.tunnel is not None
        waiter.tunnel_ready(member.tunnel)

    def _members(self, key: Key) -> list[_Making]:
        members = self._ready.get(key)
        if members is None:
            return []
        self._last = key, members
        return members

    def _wait(self, key: Key, credentials: Credentials, waiter: Waiter, apart: bool) -> None:
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = _Making(self, key, credentials)
            making.waiting[waiter] = None
            if apart:
                self.node.loop.call_at(self.node.loop.now + _PATIENCE_S, partial(self._impatient, making))
            self._dial(making)
        elif len(making.waiting) >= MAX_WAITING:
            waiter.no_tunnel("CONNECT", f"too many connections wait for a tunnel to {key.address}")
        else:
            making.waiting[waiter] = None

    def _impatient(self, making: _Making) -> None:
        if self._making.get(making.key) is making:
            waiting, making.waiting = list(making.waiting), {}
            for waiter in self._make_do(making, waiting):
                making.waiting[waiter] = None

    def _make_do(self, making: _Making, waiting: list[Waiter]) -> list[Waiter]:
        """Serve who waited for another tunnel beside bulk; returns those for whom there is no room."""
        content = self._ready.get(making.key, ()) if waiting else ()
        for member in content:
            member.content_until = self.node.loop.now + _CONTENT_S
        while waiting and any(member.room(self._streams) for member in content):
            self._serve(making.key, making.credentials, waiting.pop(0))
        return waiting

    def cancel(self, key: Key, waiter: Waiter) -> None:
        """The waiter is gone; the tunnel is made all the same, for the next one."""
        self._left.pop(waiter, None)
        making = self._making.get(key)
        if making is not None:
            making.waiting.pop(waiter, None)

    def _dial(self, making: _Making) -> None:
        key = making.key
        family = socket.AF_INET if key.address.version == 4 else socket.AF_INET6
        try:
            sock = self._netns.make_socket(family, None)
        except OSError as error:
            making.not_connected("CONNECT", f"cannot make a socket: {error}")
            return
        making.dial = Dial(self.node.loop, self.node.dials, making, sock, (text_of(key.address), key.port))
        making.dial.start()

    def made(self, member: _Making) -> None:
        """A tunnel is up: serve who waits, and make another for who finds no room."""
        key = member.key
        self._making.pop(key, None)
        self._ready.setdefault(key, []).append(member)
        member.idle_since = self.node.loop.now
        waiting, member.waiting = list(member.waiting), {}
        if len(waiting) == 1:  # mostly; whether it is there still is not worth asking: one stream in vain costs no patience
            self.request(key, member.credentials, waiting[0])
        else:
            self._tell(waiting, partial(self._serve, key, member.credentials))

    def _serve(self, key: Key, credentials: Credentials, waiter: Waiter) -> None:
        # Thousands may have gone meanwhile. As streams that are reset they would cost this tunnel, too, its peer's patience.
        if waiter.is_there():
            self.request(key, credentials, waiter)

    def _tell(self, waiting: list[Waiter], tell: Callable[[Waiter], None]) -> None:
        self._left.update(dict.fromkeys(waiting, tell))
        self.go_on()

    def go_on(self) -> None:
        """Tell some of those who waited; the others when the pod's turn comes (ztunnel.rota)."""
        left = self._left
        try:
            for _ in range(min(WAITERS_PER_TURN, len(left))):
                if left:  # whom they tell may take others away
                    waiter = next(iter(left))
                    left.pop(waiter)(waiter)
        finally:  # one of them may fail: the others are told all the same
            if left:
                self.node.loop.rota.add(self, self)

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Crashing: whoever is left has a turn to come."""

    def failed(self, member: _Making, flag: Flag, error: str) -> None:
        """A tunnel is gone, or never came up: so are those who wait for it."""
        key = member.key
        if self._making.get(key) is member:
            del self._making[key]
        members = self._ready.get(key)
        if members and member in members:
            members.remove(member)
            if not members:
                del self._ready[key]
                self._last = None, []
        waiting, member.waiting = list(member.waiting), {}
        self._tell(self._make_do(member, waiting), lambda waiter: waiter.no_tunnel(flag, error))

    def release_idle(self) -> None:
        """Give back what nobody uses; to be called every second."""
        now = self.node.loop.now
        since = now - self.node.config.tuning.pool_idle_s
        for member in [one for members in self._ready.values() for one in members]:
            tunnel = member.tunnel
            if tunnel is None:
                continue
            member.calm(now)  # so that bulk of long ago is not taken for bulk of now
            member.relieve()
            if not tunnel.http.streams and member.idle_since <= since:
                tunnel.end("")

    def owner_of(self, key: Key) -> Workload | None:
        """Whose address it is that such a tunnel leads to, as far as is known."""
        return self.node.inventory.workload_by_address(self.node.config.network, key.address)

    def inventory_changed(self) -> None:
        """Part with peers whose address is no longer theirs: nobody there knows of our tunnel, and waiting would be in vain."""
        for key, members in list(self._ready.items()):
            owner = self.owner_of(key)
            pod = _pod(owner)
            for member in list(members):
                if member.tunnel is None:
                    continue
                if owner is None:
                    if member.peer is not None and not member.tunnel.http.streams:
                        member.tunnel.end("")
                elif str(owner.identity) not in key.expected or (member.peer is not None and pod not in (None, member.peer)):
                    member.tunnel.end(f"{key.address} belongs to {owner.namespace}/{owner.name} now")

    def tunnels(self) -> list[Tunnel]:
        """Those that are made."""
        return [one.tunnel for members in self._ready.values() for one in members if one.tunnel is not None]

    def members(self) -> list["_Making"]:
        """All of them, those in the making too."""
        return [*self._making.values(), *(one for members in self._ready.values() for one in members)]


def _flows(http: Connection) -> bool:
    """Whether the windows of all its streams together are open, both ways."""
    return http.window > 0 < http.receive_window


def _pod(workload: Workload | None) -> tuple[str, str, str] | None:
    """Which pod that is; None: none. One of the same name on another node is another."""
    if workload is None or not workload.is_pod:
        return None
    return workload.namespace, workload.name, workload.node
