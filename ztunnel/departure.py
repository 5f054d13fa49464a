"""How connections of this node's pods begin: captured at 15001, they wait until it is known who asks, and where that leads."""

import socket
from functools import partial

from mesh.workload import Workload
from ztunnel.dial import endpoint, original_destination
from ztunnel.ledger import SocketAddress
from ztunnel.missing import missing_outbound
from ztunnel.outbound import Outbound
from ztunnel.pod import Pod
from ztunnel.route import Refused, Request
from ztunnel.waiting import WaitingConnection


def accept_outbound(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
    """An application connected: find out where to. One that no redirect sent is refused."""
    meant = original_destination(sock)
    if meant is None or meant[1] == 0:
        local = endpoint(sock.getsockname())
        sock.close()
        pod.node.fail_early(pod.uid, "outbound", peer, local, "CONNECT", "no original destination: not sent by the redirect")
        return
    client = pod.workload()
    if client is not None:
        depart(pod, client, sock, peer, meant)
        return

    def go(known: socket.socket, workload: Workload) -> None:
        depart(pod, workload, known, peer, meant)

    WaitingConnection(pod, sock, peer, meant, "outbound", go).start()


def depart(pod: Pod, client: Workload, sock: socket.socket, peer: SocketAddress, destination: SocketAddress) -> None:
    """Route a connection, and take it there."""
    request = Request(client, peer[0], *destination)
    if pod.node.demands is not None:
        _ask(pod, sock, peer, request, destination)
        return
    Outbound(pod, sock, peer, request).start(pod.ways.find(request))


def _ask(pod: Pod, sock: socket.socket, peer: SocketAddress, request: Request, destination: SocketAddress) -> None:
    """Route a connection once all is known that its route depends on; never past what could not be known."""
    node, network = pod.node, pod.node.config.network

    def go(known: socket.socket, error: str) -> None:
        way = Refused(error) if error else pod.ways.find(request)
        Outbound(pod, known, peer, request).start(way)

    missing = partial(missing_outbound, node.inventory, network, request)
    WaitingConnection(pod, sock, peer, destination, "outbound", lambda *_: None).ask(missing, go)
