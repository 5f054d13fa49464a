"""A plain connection that waits until its pod's workload is known: control may tell of a pod after it began to talk."""

import socket
from collections.abc import Callable

from mesh.workload import Workload
from ztunnel.channel import Direction, Flag
from ztunnel.ledger import SocketAddress
from ztunnel.pod import Pod
from ztunnel.tunnel import reset_on_close

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

    def turn_away(self, flag: Flag, error: str) -> None:
        """Close before anything was said."""
        sock, self._sock = self._sock, None
        self.pod.guests.pop(self, None)
        self.pod.node.forget_waiter(self)
        if sock is not None:
            reset_on_close(sock)
            sock.close()
            self.pod.node.fail_early(self.pod.uid, self._direction, self._peer, self._local, flag, error)
