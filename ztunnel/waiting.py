"""Connections that wait until something is known: their pod's workload, or, on demand, where they go.

Control may tell of a pod after the pod began to talk; and of everything else only when it is asked.
"""

import socket
from collections.abc import Callable

from mesh.workload import Workload
from ztunnel.connection_record import Direction, Flag
from ztunnel.demands import Demands
from ztunnel.ledger import SocketAddress
from ztunnel.pod import Pod
from ztunnel.questions import Asker
from ztunnel.stream import TunnelStream
from ztunnel.tunnel import Tunnel

_ROLES: dict[Direction, str] = {"inbound": "destination", "outbound": "source"}


class WaitingConnection:
    """Goes on with `go(socket, workload)`, or is turned away after a while."""

    def __init__(
        self,
        pod: Pod,
        sock: socket.socket,
        peer: SocketAddress,
        local: SocketAddress,
        direction: Direction,
        go: Callable[[socket.socket, Workload], None],
    ) -> None:
        """`local`: what was dialled, for the words of a refusal."""
        self.pod = pod
        self._sock: socket.socket | None = sock
        self._peer = peer
        self._local = local
        self._direction: Direction = direction
        self._go = go

    def start(self) -> None:
        """Go on when the workload is known."""
        self.pod.guests[self] = None
        self.pod.node.when_known(self, self._try_workload, self._no_workload)

    def _try_workload(self) -> bool:
        workload = self.pod.workload()
        if workload is None or self._sock is None:
            return self._sock is None
        sock, self._sock = self._sock, None
        self.pod.guests.pop(self, None)
        self._go(sock, workload)
        return True

    def _no_workload(self) -> None:
        role = _ROLES[self._direction]
        self.turn_away("-", f"unknown {role}: no workload for pod {self.pod.namespace}/{self.pod.name}")

    def ask(self, missing: Callable[[], list[str]], go: Callable[[socket.socket, str], None]) -> None:
        """Wait for what is missing instead, then go on with why it is not known, or nothing."""
        demands = self.pod.node.demands
        assert demands is not None

        def answered(error: str) -> None:
            sock, self._sock = self._sock, None
            self.pod.guests.pop(self, None)
            if sock is not None:
                go(sock, error)

        workload = self.pod.workload()
        asker = Asker(self.pod.uid, workload.identity if workload is not None else None)
        self.pod.guests[self] = None
        if not demands.ask(self, asker, missing, answered):
            answered("")

    def turn_away(self, flag: Flag, error: str) -> None:
        """Close before anything was said."""
        sock, self._sock = self._sock, None
        self.pod.guests.pop(self, None)
        self.pod.node.forget_waiter(self)
        if sock is not None:
            sock.close()
            self.pod.node.fail_early(self.pod.uid, self._direction, self._peer, self._local, flag, error)


class WaitingRequest:
    """A CONNECT that waits until its target is known; what its client sends meanwhile waits in the stream."""

    def __init__(self, tunnel: Tunnel, go: Callable[[TunnelStream, str], None]) -> None:
        """Goes on with `go(stream, why it is not known or nothing)`, unless the stream ends before."""
        self.stream = TunnelStream(tunnel, self)
        self._go = go
        self._demands: Demands | None = None

    def ask(self, demands: Demands, sid: int, missing: Callable[[], list[str]]) -> bool:
        """Wait for what is missing; False: nothing is. The peer asks, so that it uses up nobody's share but its own."""
        peer = self.stream.tunnel.peer
        if not demands.ask(self, Asker(str(peer), peer), missing, self._answered):
            return False
        self._demands = demands
        self.stream.tunnel.http.adopt(self.stream, sid)
        return True

    def _answered(self, error: str) -> None:
        if not self.stream.closed:
            self._go(self.stream, error)

    def opened(self) -> None:
        """See ztunnel.stream_owner.Owner."""

    def declined(self, _stream: TunnelStream, _untouched: bool) -> bool:
        """See ztunnel.stream_owner.Owner: only a server is asked."""
        return False

    def ended(self, _flag: Flag, _error: str) -> None:
        """The client gave up, or its tunnel is gone."""
        if self._demands is not None:
            self._demands.forget(self)
