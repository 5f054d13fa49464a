"""Plain text that reached a pod (15006): only asked whether it may, and for the port that it was meant for."""

import socket

from mesh.workload import Workload
from ztunnel.connection_record import ConnectionRecord, Flag
from ztunnel.dial import endpoint, original_destination
from ztunnel.gate import service_of
from ztunnel.hbone import Authority
from ztunnel.inbound import Inbound, application_at
from ztunnel.ledger import DRAINED, SocketAddress
from ztunnel.passthrough import Passthrough
from ztunnel.pod import Pod
from ztunnel.waiting import WaitingConnection


def accept_plain(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
    """Plain text reached the pod: it was meant for the application's port."""
    local = endpoint(sock.getsockname())
    reserved = pod.node.reserved_ports
    if local[1] in reserved:  # not steered by the kernel: a NAT rule says where it was meant to go, or nobody does
        meant = original_destination(sock)
        if meant is None or meant[1] in reserved:
            sock.close()
            pod.node.fail_early(pod.uid, "inbound", peer, local, "CONNECT", f"self call to {Authority(*local)}")
            return
        local = meant

    def go(known: socket.socket, workload: Workload) -> None:
        InboundPlain(pod, known, peer, local, workload).start()

    WaitingConnection(pod, sock, peer, local, "inbound", go).start()


class InboundPlain(Inbound):
    """One plain connection to an application of this node."""

    __slots__ = ("_sock",)

    def __init__(self, pod: Pod, sock: socket.socket, peer: SocketAddress, local: SocketAddress, workload: Workload) -> None:
        node = pod.node
        source = node.source_at(peer[0])
        service = service_of(node.inventory, workload, local[1])
        record = ConnectionRecord(
            node.ledger.next_number(),
            pod.uid,
            "inbound",
            "TCP",
            peer,
            local,
            source_workload=source.uid if source else "",
            destination_workload=workload.uid,
            destination_identity=workload.identity,
            destination_service=service.key if service else "",
        )
        super().__init__(pod, record, workload, local[1])
        self._sock: socket.socket | None = sock

    def start(self) -> None:
        """Check, then connect to where the client meant."""
        refusal = self.check()
        if refusal:
            self.ended("DENY", refusal)
        else:
            self.dial(application_at(self.pod, self.record.source[0], *self.record.destination))

    def connected(self, sock: socket.socket) -> None:
        """The application is there: move bytes."""
        self._dial = None
        if self.pod.closed:
            sock.close()
            self.ended("-", DRAINED)
            return
        client, self._sock = self._sock, None
        assert client is not None
        self.pump = Passthrough(self.pod.node.loop, self, sock, client, self.pod.holder.held)

    def not_connected(self, flag: Flag, error: str) -> None:
        """The application is not there: neither is the connection."""
        self._dial = None
        self.ended(flag, error)

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.ledger.Tracked."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        super().ended(flag, error)
