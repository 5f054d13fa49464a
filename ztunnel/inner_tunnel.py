"""A tunnel inside a stream of another one: how a connection reaches a workload behind the gateway of another network.

The outer stream ends at the gateway, which only passes bytes on. The inner tunnel, mutual TLS and HTTP/2 again, ends at the
workload or its waypoint, carries this one connection and is never shared: else all connections would meet one workload there.

Between the two lies a pair of sockets, so that both ends are the same code as everywhere else, with its back-pressure and its
bounds. That costs this path two system calls a message more, and the path of all others nothing.

When its connection has ended the inner tunnel says so, and listens on until the gateway ends its stream: what is said to a
closed socket would be answered with a reset, which overtakes the last bytes. Where nobody takes those it is cut off.

Source: facts of Istio's ztunnel, sections 4.1 to 4.3.
"""

import socket
from collections.abc import Callable
from typing import Protocol

from mesh.identity import Identity
from mesh.workload import Address
from ztunnel.connection_record import Flag
from ztunnel.fields import Fields, Repeating
from ztunnel.flow import Stream
from ztunnel.frames import Code
from ztunnel.pod import Pod
from ztunnel.stream import TunnelStream
from ztunnel.stream_owner import Owner as StreamOwner
from ztunnel.tls import Credentials, check_server
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified


class Owner(Protocol):
    """Who wants to open a stream in it."""

    def inner_ready(self, tunnel: Tunnel) -> None:
        """Open it now."""

    def inner_failed(self, flag: Flag, error: str, untouched: bool) -> None:
        """There will be no tunnel; `untouched`: the gateway never looked at its stream, and through another tunnel may."""


class InnerTunnel:
    """One tunnel in a stream; owns both, and the sockets between them."""

    def __init__(self, pod: Pod, owner: Owner, expected: frozenset[str], gateway: Address) -> None:
        self._pod, self._node = pod, pod.node
        self._gateway = gateway
        """All tunnels through it share one place in the rota."""
        self._owner: Owner | None = owner
        self._expected = expected
        self._domains: frozenset[str] = frozenset()
        self._credentials: Credentials | None = None
        self._tunnel: Tunnel | None = None
        self._outer: TunnelStream | None = None
        self._untouched = False
        self._moved = -1
        """What the outer stream had taken when somebody looked last; -1: it is not ending yet."""

    def start(self, outer: Tunnel, credentials: Credentials, repeating: Repeating, once: bytes) -> None:
        """Ask the gateway for a connection, and greet who is behind it: both in one flight."""
        try:
            ours, gateways = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._fail("CONNECT", f"cannot make a socket: {error}")
            return
        node = self._node
        self._credentials = credentials
        self._domains = node.domains_of(credentials.identity)
        tunnel = Tunnel(
            node.loop, ours, node.hellos.take(credentials), False, self, node.client_handshakes, self._gateway, outer.held
        )
        if not tunnel.open:
            gateways.close()
            return
        self._tunnel = tunnel
        node.add_tunnel(tunnel)
        self._outer = stream = TunnelStream(outer, self)
        stream.keep_early(b"")
        stream.request(gateways, repeating, once)

    def end(self) -> None:
        """Nobody wants it any more. Once its stream has been opened, the end of that stream ends it."""
        if self._owner is not None:
            self._owner = None
            if self._tunnel is not None:
                self._tunnel.end("")
            if self._outer is not None:
                self._outer.abort("-", "")

    def _fail(self, flag: Flag, error: str) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.inner_failed(flag, error, self._untouched)

    def declined(self, _stream: TunnelStream, untouched: bool) -> bool:
        """See ztunnel.stream_owner.Owner: it ends all the same, and its owner begins anew."""
        self._untouched = untouched
        return False

    # --- what the outer stream tells

    def opened(self) -> None:
        """See ztunnel.stream_owner.Owner: the gateway passes bytes on, though its tunnel may have been full for a while."""
        self._untouched = False

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.stream_owner.Owner. A clean end is one for the inner tunnel too, behind what is left."""
        outer, self._outer = self._outer, None
        self._node.lingering.discard(self)
        self._pod.lingering.pop(self, None)
        if outer is not None and outer.answered:
            self._untouched = False
        if error and self._tunnel is not None:
            self._fail(flag, error)
            self._tunnel.close(flag, error)

    # --- what the inner tunnel tells

    def check_peer(self, tunnel: Tunnel, peer: Verified) -> Identity:
        """See ztunnel.tunnel_owner.Owner."""
        self._node.revocations.check(tunnel.server, peer.chain)
        return check_server(peer.names, self._expected, self._domains)

    def established(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner. What was believed when the connection came may have changed meanwhile."""
        asked_with = self._credentials
        assert asked_with is not None
        now = self._node.vault.find(asked_with.identity)
        if now is None:
            tunnel.end(f"{asked_with.identity} has no certificate any more")
            return
        if now is not asked_with and not tunnel.is_believed_by(now.authorities):
            tunnel.end("its peer's root is believed no more")
            return
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.inner_ready(tunnel)

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        """See ztunnel.tunnel_owner.Owner: only a server is asked."""
        return None

    def retired(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner: the one stream has ended."""
        if not tunnel.http.streams:
            tunnel.drain()
            self._linger()

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        """See ztunnel.tunnel_owner.Owner. The outer stream takes the last bytes along, but not for ever."""
        self._node.remove_tunnel(tunnel)
        self._tunnel = None
        self._linger()
        self._fail(flag, f"io error: {error}")

    def _linger(self) -> None:
        """Give it a while to end: once, however often it is asked for."""
        if self._outer is not None and self._moved < 0:
            self._pod.lingering[self] = None
            self._look_later(self._outer)

    def _look_later(self, outer: TunnelStream) -> None:
        self._moved = outer.sent
        self._node.lingering.add(self, self._node.loop.now, self._look)

    def _look(self) -> None:
        outer = self._outer
        if outer is None:
            return
        if outer.sent > self._moved:  # on a slow link the last bytes take longer
            self._look_later(outer)
        else:
            outer.abort("-", "h2 failed: the gateway does not end its stream", Code.CANCEL)


class InnerStream(TunnelStream):
    """The stream in it; tells who answers, for telemetry."""

    __slots__ = ("_heard",)

    def __init__(self, tunnel: Tunnel, owner: StreamOwner, heard: Callable[[Fields], None]) -> None:
        super().__init__(tunnel, owner)
        self._heard = heard

    def peer_answered(self, fields: Fields) -> None:
        """See ztunnel.flow.Stream."""
        self._heard(fields)
        super().peer_answered(fields)
