"""Connections to this node's pods: HBONE from other proxies (15008) and plain text (15006).

The order of checks is fixed: who is it (TLS), what does it want (400, 503), may it (401), is the application there (503),
and only then 200. A plain connection is only asked whether it may.
"""

import socket
from functools import partial
from ipaddress import ip_address

from mesh.identity import Identity
from mesh.policy import Connection
from mesh.workload import Address, Workload
from ztunnel.baggage import Described
from ztunnel.channel import ConnectionRecord, Flag
from ztunnel.dial import Dial, endpoint, original_destination
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.frames import Code
from ztunnel.gate import Admitted, Rejected, admit, service_of
from ztunnel.hbone import (
    RESERVED_PORTS,
    Authority,
    BadRequest,
    ConnectRequest,
    Malformed,
    read_request,
    response_fields,
)
from ztunnel.ledger import DENIED, SocketAddress, Tracked
from ztunnel.missing import missing_inbound
from ztunnel.node import Node
from ztunnel.passthrough import Passthrough
from ztunnel.pod import Pod
from ztunnel.proxy_header import proxy_header
from ztunnel.stream import TunnelStream
from ztunnel.tls import Credentials, check_client
from ztunnel.tunnel import Tunnel, reset_on_close
from ztunnel.waiting import WaitingConnection, WaitingRequest

_LOOPBACKS: dict[int, Address] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}


def accept_hbone(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
    """A proxy connects to 15008: greet it as the pod's own identity, as soon as both are known."""
    Arrival(pod, sock, peer, endpoint(sock.getsockname())).start()


class Arrival:
    """One inbound tunnel and where it came from."""

    def __init__(self, pod: Pod, sock: socket.socket, peer: SocketAddress, local: SocketAddress) -> None:
        self.pod = pod
        self.peer = peer
        self.local = local
        self._sock: socket.socket | None = sock
        self._identity: Identity | None = None
        self._trust_domain = ""

    def start(self) -> None:
        """Find the pod's workload, then its certificate, then greet."""
        self.pod.guests[self] = None
        self.pod.node.when_known(self, self._try_workload, self._no_workload)

    def _try_workload(self) -> bool:
        workload = self.pod.workload()
        if workload is None:
            return False
        self._identity = workload.identity
        self._trust_domain = workload.trust_domain
        vault = self.pod.node.vault
        credentials = vault.find(workload.identity)
        if credentials is not None:
            self._greet(credentials)
        else:
            vault.wait(workload.identity, self, self._greet)
        return True

    def _no_workload(self) -> None:
        self.turn_away("IDENTITY_ERROR", f"unknown destination: no workload for pod {self.pod.namespace}/{self.pod.name}")

    def _greet(self, credentials: Credentials | str) -> None:
        node, sock = self.pod.node, self._sock
        if sock is None:
            return
        if isinstance(credentials, str):
            self.turn_away("IDENTITY_ERROR", credentials)
            return
        now, source = node.loop.now, self.peer[0]
        bound = node.handshakes.make_room(source, self.pod.uid, self.pod.holder.limits.handshakes)
        if bound is not None:
            (node if bound == "node" else self.pod).holder.count("handshakes")
        wait_s = node.penance.wait_s(source, now)
        if wait_s:
            node.handshakes.add(self, now, self._not_greeted)
            node.handshakes.belongs(self, source, self.pod.uid)
            node.loop.call_at(now + wait_s, lambda: self._welcome(credentials))
        else:
            self._welcome(credentials)

    def _not_greeted(self) -> None:
        self.turn_away("TLS_FAILURE", "tls handshake error: timed out or evicted while its source, which offended, had to wait")

    def _welcome(self, credentials: Credentials) -> None:
        node, sock = self.pod.node, self._sock
        if sock is None:
            return
        self._sock = None
        node.handshakes.discard(self)
        pod, source = self.pod, self.peer[0]
        tunnel = Tunnel(node.loop, sock, credentials.server, True, self, node.handshakes, source, pod.holder.held)
        node.handshakes.belongs(tunnel, source, pod.uid)
        pod.guests.pop(self, None)
        pod.tunnels[tunnel] = None
        node.add_inbound_tunnel(tunnel, pod.uid, source)
        if pod.draining:
            tunnel.drain()

    def turn_away(self, flag: Flag, error: str) -> None:
        """Close before anything was said."""
        sock, self._sock = self._sock, None
        node = self.pod.node
        self.pod.guests.pop(self, None)
        node.handshakes.discard(self)
        node.forget_waiter(self)
        if self._identity is not None:
            node.vault.forget_waiter(self._identity, self)
        if sock is not None:
            reset_on_close(sock)
            sock.close()
            node.fail_early(self.pod.uid, "inbound", self.peer, self.local, flag, error)

    # --- what the tunnel asks

    def check_peer(self, tunnel: Tunnel, names: list[str]) -> Identity:
        """See ztunnel.tunnel_owner.Owner."""
        self.pod.node.revocations.check(tunnel)
        return check_client(names, self._trust_domain, self.pod.node.config.trust_domain_aliases)

    def established(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def retired(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        """See ztunnel.tunnel_owner.Owner."""
        node = self.pod.node
        node.remove_tunnel(tunnel)
        if tunnel.offence:
            node.penance.offended(self.peer[0], node.loop.now)
        self.pod.tunnels.pop(tunnel, None)
        if error and (tunnel.offence or not (tunnel.http.ready and tunnel.lost_streams)):
            node.fail_early(self.pod.uid, "inbound", self.peer, self.local, flag, error, tunnel.peer)

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        """See ztunnel.tunnel_owner.Owner."""
        try:
            request = read_request(fields)
        except Malformed as error:
            tunnel.http.refuse(sid, Code.PROTOCOL_ERROR)
            self._fail(tunnel, f"malformed request: {error}")
            return None
        except BadRequest as error:
            self._reject(tunnel, sid, 400, str(error))
            return None
        node = self.pod.node
        workload = self.pod.workload()
        if workload is None:
            self._reject(tunnel, sid, 503, "unknown destination")
            return None
        if not self.pod.has_room():
            self._reject(tunnel, sid, 503, "too many connections")
            return None
        if not self.pod.has_room_for_stream():
            self._reject(tunnel, sid, 503, "too many streams")
            return None
        node.inbound_tunnels.used(tunnel)
        if node.demands is not None:
            missing = partial(missing_inbound, node.inventory, node.config.network, workload, self.local[0], request.authority)
            waiting = WaitingRequest(tunnel, lambda stream, error: self._go_on(stream, workload, request, error))
            if waiting.ask(node.demands, self.pod.uid, sid, missing):
                return waiting.stream
        return self._admit(tunnel, sid, workload, request)

    def _admit(
        self, tunnel: Tunnel, sid: int, workload: Workload, request: ConnectRequest, stream: TunnelStream | None = None
    ) -> Stream | None:
        node = self.pod.node
        outcome = admit(node.inventory, node.config.network, workload, self.local[0], request)
        if isinstance(outcome, Rejected):
            self._reject(tunnel, sid, outcome.status, outcome.reason)
            return None
        return InboundRequest(self, tunnel, workload, request, outcome).start(sid, stream)

    def _go_on(self, stream: TunnelStream, workload: Workload, request: ConnectRequest, error: str) -> None:
        """What a request waited for is known, or why not."""
        tunnel = stream.tunnel
        tunnel.loop.dirty[tunnel] = None
        admitted = None
        if error:
            self._reject(tunnel, stream.sid, 503, error)
        else:
            admitted = self._admit(tunnel, stream.sid, self.pod.workload() or workload, request, stream)
        if admitted is None:
            stream.drop()

    def _reject(self, tunnel: Tunnel, sid: int, status: int, reason: str) -> None:
        tunnel.http.reject(sid, response_fields(status))
        self._fail(tunnel, reason)

    def _fail(self, tunnel: Tunnel, reason: str) -> None:
        self.pod.node.fail_early(self.pod.uid, "inbound", self.peer, self.local, "CONNECT", reason, tunnel.peer)


class _Inbound(Tracked):
    """What both kinds share: policy, then the application's own socket."""

    __slots__ = ("_dial", "pod")

    def __init__(self, pod: Pod, record: ConnectionRecord, workload: Workload, port: int) -> None:
        super().__init__(pod.node.ledger, record)
        self.pod = pod
        self._dial: Dial | None = None
        self.workload = workload
        self.subject = Connection(record.source[0], record.source_identity, record.destination[0], port)

    def check(self) -> str:
        """Register, then ask the policies; why not, or nothing."""
        self.pod.connections[self] = None
        self.ledger.register(self)
        verdict = self.ledger.judge(self)
        return "" if verdict.allowed else DENIED + verdict.reason

    def dial(self, address: Address, port: int) -> None:
        """Connect to the application, from the client's own address where that is possible."""
        node = self.pod.node
        client = self.record.source[0]
        keeps = self.pod.keeps_source and client != address and client.version == address.version and not address.is_loopback
        source = client if keeps else None
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            sock = self.pod.netns.make_socket(family, source)
        except OSError as error:
            self.not_connected("CONNECT", f"cannot make a socket: {error}")
            return
        self._dial = Dial(node.loop, node.dials, self, sock, address, port)
        self._dial.start()

    def connected(self, sock: socket.socket) -> None:
        """See ztunnel.dial.Owner."""
        raise NotImplementedError

    def not_connected(self, flag: Flag, error: str) -> None:
        """See ztunnel.dial.Owner."""
        raise NotImplementedError

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.ledger.Tracked."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self.pod.connections.pop(self, None)
        super().ended(flag, error)


class InboundRequest(_Inbound):
    """One CONNECT stream to an application of this node."""

    __slots__ = ("_admitted", "_stream", "_tunnel")

    def __init__(
        self, arrival: Arrival, tunnel: Tunnel, workload: Workload, request: ConnectRequest, admitted: Admitted
    ) -> None:
        node, peer, service = arrival.pod.node, tunnel.peer, admitted.service
        assert peer is not None  # no request is read before the handshake is done
        source, described = _source_of(node, arrival.peer[0], peer, request)
        record = ConnectionRecord(
            node.ledger.next_number(),
            arrival.pod.uid,
            "inbound",
            "HBONE",
            arrival.peer,
            arrival.local,
            str(request.authority),
            source_workload=source.uid if source else "",
            source_identity=peer,
            source_described=described,
            destination_workload=workload.uid,
            destination_identity=workload.identity,
            destination_service=service.key if service else "",
        )
        super().__init__(arrival.pod, record, workload, admitted.port)
        self._tunnel = tunnel
        self._admitted = admitted
        self._stream: TunnelStream | None = None

    def check(self) -> str:
        """See _Inbound."""
        self.pod.count_stream(1)
        return super().check()

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.ledger.Tracked."""
        if self in self.pod.connections:
            self.pod.count_stream(-1)
        super().ended(flag, error)

    def start(self, sid: int, stream: TunnelStream | None = None) -> Stream | None:
        """Check and connect; the stream (a new one, unless the request waited in it), unless it was rejected at once."""
        refusal = self.check()
        if refusal:
            self._tunnel.http.reject(sid, response_fields(401))
            self.ended("DENY", refusal)
            return None
        if stream is None:
            stream = TunnelStream(self._tunnel, self)
            self._tunnel.http.adopt(stream, sid)
        stream.owner = self
        self._stream = self.pump = stream
        local = self.record.destination[0]
        if self._admitted.announced is not None and self.pod.node.config.localhost_app_tunnel:
            local = _LOOPBACKS[local.version]  # where nobody reaches the application past its proxy
        self.dial(local, self._admitted.port)
        return stream

    def connected(self, sock: socket.socket) -> None:
        """The application is there: say 200, and move bytes."""
        self._dial = None
        stream = self._stream
        assert stream is not None and self.workload is not None
        announced = self._admitted.announced
        if announced is not None and not self._announce(sock, announced):
            return
        says = self.pod.node.config.enhanced_baggage
        stream.answer(response_fields(200, self.pod.baggage(self.workload) if says else b""))
        self.opened()
        stream.attach(sock, speaks_first=False)

    def _announce(self, sock: socket.socket, target: SocketAddress) -> bool:
        """Write the PROXY header; a socket that was just connected takes it whole, unless it broke already."""
        identity = self.record.source_identity
        assert identity is not None
        header = proxy_header(self.record.source, target, identity)
        try:
            if sock.send(header) == len(header):
                return True
            error = "the application's socket took no PROXY header"
        except OSError as broken:
            error = f"connection failed: {broken.strerror} (os error {broken.errno})"
        sock.close()
        self.not_connected("CONNECT", error)
        return False

    def not_connected(self, flag: Flag, error: str) -> None:
        """The application is not there: say 503."""
        self._dial = None
        stream = self._stream
        assert stream is not None
        self._tunnel.http.reject(stream.sid, response_fields(503))
        self._tunnel.loop.dirty[self._tunnel] = None
        stream.drop()
        self.ended(flag, error)


def _source_of(
    node: Node, address: Address, identity: Identity, request: ConnectRequest
) -> tuple[Workload | None, Described | None]:
    """Who the client is: by its address, else by its own words. The address of another network's gateway says nothing."""
    network = node.config.network
    foreign = request.network is not None and request.network.lower() != network.lower()
    source = None if foreign else node.source_at(address)
    if source is not None:
        return source, None
    return None, node.descriptions.read(identity, request.baggage if node.config.enhanced_baggage else b"")


def accept_plain(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
    """Plain text reached the pod: it was meant for the application's port."""
    local = endpoint(sock.getsockname())
    if local[1] in RESERVED_PORTS:  # not steered by the kernel: a NAT rule says where it was meant to go, or nobody does
        meant = original_destination(sock)
        if meant is None or meant[1] in RESERVED_PORTS:
            reset_on_close(sock)
            sock.close()
            pod.node.fail_early(pod.uid, "inbound", peer, local, "CONNECT", f"self call to {Authority(*local)}")
            return
        local = meant

    def go(known: socket.socket, workload: Workload) -> None:
        InboundPlain(pod, known, peer, local, workload).start()

    WaitingConnection(pod, sock, peer, local, "inbound", go).start()


class InboundPlain(_Inbound):
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
            self.dial(*self.record.destination)

    def connected(self, sock: socket.socket) -> None:
        """The application is there: move bytes."""
        self._dial = None
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
            reset_on_close(sock)
            sock.close()
        super().ended(flag, error)
