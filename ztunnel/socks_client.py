"""A client of a pod's SOCKS5 listener (15080, for tests alone): where it wants to go is where it is taken, as if captured.

Nothing is read beyond its request: what follows belongs to the connection.
"""

import socket
from contextlib import suppress
from random import choice

from mesh.workload import Address, Workload
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import Flag
from ztunnel.departure import depart
from ztunnel.dial import endpoint
from ztunnel.ledger import SocketAddress
from ztunnel.loop import IN
from ztunnel.names import find
from ztunnel.pod import Pod
from ztunnel.socks5 import Negotiation, Refusal, Reply


def accept_socks(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
    """A client connected: hear where it wants to go."""
    SocksClient(pod, sock, peer).start()


class SocksClient:
    """One client, until it is on its way; owns its socket. A guest of its pod."""

    def __init__(self, pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
        self.pod = pod
        self._sock: socket.socket | None = sock
        self._peer = peer
        self._local = endpoint(sock.getsockname())
        self._negotiation = Negotiation()
        self._port = 0
        self._name = ""
        self._workload: Workload | None = None

    def start(self) -> None:
        """Listen to it, for a while."""
        assert self._sock is not None
        node = self.pod.node
        self.pod.guests[self] = None
        node.socks_clients.add(self, node.loop.now, lambda: self.turn_away("-", "SOCKS: timed out"))
        node.loop.watch(self._sock.fileno(), IN, self)

    def on_event(self, _events: int) -> None:
        """It said something, or has gone."""
        sock = self._sock
        if sock is None:
            return
        try:
            while self._negotiation.target is None:
                data = sock.recv(self._negotiation.wanted)
                if not data:
                    self.turn_away("-", "SOCKS: closed by the client")
                    return
                answer = self._negotiation.receive(data)
                if answer:
                    sock.send(answer)  # two bytes, the first on this socket
        except BlockingIOError:
            return
        except Refusal as refusal:
            self._refuse(refusal.said, str(refusal))
            return
        except OSError as error:
            self.turn_away("-", f"SOCKS: {error.strerror}")
            return
        self._heard(sock)

    def _heard(self, sock: socket.socket) -> None:
        node = self.pod.node
        node.loop.forget(sock.fileno())
        node.when_known(self, self._look, self._no_workload)

    def _no_workload(self) -> None:
        self.turn_away("-", f"unknown source: no workload for pod {self.pod.namespace}/{self.pod.name}")

    def _look(self) -> bool:
        """Find out where that is, once it is known whose client this is."""
        workload = self._workload = self.pod.workload()
        if workload is None or self._negotiation.target is None:
            return False
        host, self._port = self._negotiation.target
        if not isinstance(host, str):
            self._depart(host)
            return True
        self._name = host
        node = self.pod.node
        for version in (4, 6):
            found = find(node.inventory, node.zone, workload, host, version)
            if found is None:
                node.resolver.resolve(host, 4, self, self._resolved, workload)
                return True
            if found.addresses:
                self._depart(choice(found.addresses))
                return True
        self._resolved(None)
        return True

    def _resolved(self, address: Address | None) -> None:
        if address is None:
            self._refuse(Reply.HOST_UNREACHABLE.said(), f"no address found for {self._name}")
        else:
            self._depart(address)

    def _depart(self, address: Address) -> None:
        sock, self._sock = self._sock, None
        if sock is None or self._workload is None:
            return
        self._leave()
        _say(sock, Reply.SUCCEEDED.said())
        reset_on_close(sock)
        depart(self.pod, self._workload, sock, self._peer, (address, self._port))

    def _refuse(self, said: bytes, reason: str) -> None:
        if self._sock is not None and said:
            _say(self._sock, said)
        self.turn_away("CONNECT", reason)

    def turn_away(self, flag: Flag, error: str) -> None:
        """See ztunnel.pod.Guest."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._leave()
        self.pod.node.loop.forget(sock.fileno())
        sock.close()
        self.pod.node.fail_early(self.pod.uid, "outbound", self._peer, self._local, flag, error)

    def _leave(self) -> None:
        self.pod.guests.pop(self, None)
        node = self.pod.node
        node.socks_clients.discard(self)
        node.forget_waiter(self)
        node.resolver.forget_waiter(self)

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.turn_away("-", f"internal error: {error}")


def _say(sock: socket.socket, said: bytes) -> None:
    with suppress(OSError):  # it has gone, which whoever carries it finds out
        sock.send(said)
