"""Connections to applications of this node: policy first, then the application's own socket, then 200 and bytes."""

import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

from mesh.identity import Identity
from mesh.matching import Connection
from mesh.workload import Address, Workload
from ztunnel.baggage import Described
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import ConnectionRecord, Flag
from ztunnel.dial import Dial, text_of
from ztunnel.flow import Stream
from ztunnel.gate import Admitted
from ztunnel.hbone import ConnectRequest, response_fields
from ztunnel.ledger import DENIED, DRAINED, SocketAddress, Tracked
from ztunnel.node import Node
from ztunnel.pod import Pod
from ztunnel.proxy_header import proxy_header
from ztunnel.stream import TunnelStream
from ztunnel.tunnel import Tunnel

_LOOPBACKS: dict[int, Address] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}


class Application(NamedTuple):
    """Where an application is dialled, and from whose address."""

    family: int
    where: tuple[str, int]
    source: str | None
    """The client's own; None: ours."""


def application_at(pod: Pod, client: Address, address: Address, port: int) -> Application:
    """Dial from the client's own address, where that is possible."""
    keeps = pod.keeps_source and client != address and client.version == address.version and not address.is_loopback
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return Application(int(family), (text_of(address), port), text_of(client) if keeps else None)


class Inbound(Tracked):
    """What both kinds share: policy, then the application's own socket."""

    __slots__ = ("_dial", "_port", "pod")

    def __init__(self, pod: Pod, record: ConnectionRecord, workload: Workload, port: int) -> None:
        super().__init__(pod.node.ledger, record)
        self.pod = pod
        self._dial: Dial | None = None
        self.workload = workload
        self._port = port

    @property
    def judged_port(self) -> int:
        """See ztunnel.ledger.Tracked."""
        return self._port

    @property
    def subject(self) -> Connection:
        """See ztunnel.ledger.Tracked. Made when it is asked for: most connections are judged once."""
        record = self.record
        return Connection(record.source[0], record.source_identity, record.destination[0], self._port)

    def check(self) -> str:
        """Register, then ask the policies; why not, or nothing."""
        self.pod.connections += 1
        self.ledger.register(self)
        verdict = self.ledger.judge(self)
        return "" if verdict.allowed else DENIED + verdict.reason

    def dial(self, application: Application) -> None:
        """Connect to the application."""
        node, netns = self.pod.node, self.pod.netns
        family, where, source = application
        try:
            sock = netns.make_socket(family, source)
        except OSError as error:
            self.not_connected("CONNECT", f"cannot make a socket: {error}")
            return
        remake = None
        if source is None:
            reset_on_close(sock)
        else:
            remake = partial(netns.remake_socket, family, source)
        self._dial = Dial(node.loop, node.dials, self, sock, where, remake, "connection failed")
        self._dial.start()

    def connected(self, sock: socket.socket) -> None:
        """See ztunnel.dial.Owner."""
        raise NotImplementedError

    def not_connected(self, flag: Flag, error: str) -> None:
        """See ztunnel.dial.Owner."""
        raise NotImplementedError

    @property
    def leave(self) -> Callable[[], None]:
        """See ztunnel.ledger.Tracked."""
        return self.pod.connection_left

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.ledger.Tracked."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        super().ended(flag, error)


class Errand(NamedTuple):
    """A request that was admitted, and who asks: all that does not depend on the one connection."""

    request: ConnectRequest
    admitted: Admitted
    workload: Workload
    """Who is asked."""
    authority: str
    named: str
    """Hostname of the service that the client named, where that is who was admitted; a service that was guessed is not."""
    source: str
    """The client's xDS uid, where its address tells."""
    described: Described | None
    """The client by its own words, where it does not."""
    application: Application
    subject: Connection
    """What policies are asked about."""
    generation: int
    """Of the mesh by which all this is so; -1: of one that was only known in part."""

    def is_again(self, node: Node, workload: Workload, request: ConnectRequest) -> bool:
        """Whether the same is asked of the same in the same mesh. On demand, a question may be worth asking again."""
        same_mesh = self.generation == node.generation and self.workload is workload and node.demands is None
        return same_mesh and self.request == request

    def is_between(self, ends: tuple[Address, Address], identity: Identity) -> bool:
        """Whether it is that of a tunnel between these ends; for others nothing of it holds."""
        subject = self.subject
        return subject.identity == identity and (subject.source, subject.destination) == ends


def errand_of(
    pod: Pod, workload: Workload, ends: tuple[Address, Address], identity: Identity, request: ConnectRequest, admitted: Admitted
) -> Errand:
    """`ends`: the addresses between which the tunnel is, the client's and ours; `identity`: what its other end proved."""
    node, (source, local) = pod.node, ends
    client, described = _source_of(node, source, identity, request)
    generation = node.generation if not node.unfinished else -1
    uid = client.uid if client is not None else ""
    subject = Connection(source, identity, local, admitted.port)
    if admitted.announced is not None and node.config.localhost_app_tunnel:
        local = _LOOPBACKS[local.version]  # where nobody reaches the application past its proxy
    application = application_at(pod, source, local, admitted.port)
    named = request.forwarded_host if admitted.service and admitted.service.hostname == request.forwarded_host else ""
    authority = str(request.authority)
    return Errand(request, admitted, workload, authority, named, uid, described, application, subject, generation)


class InboundRequest(Inbound):
    """One CONNECT stream to an application of this node."""

    __slots__ = ("_errand", "_stream", "_tunnel")

    def __init__(
        self,
        pod: Pod,
        ends: tuple[SocketAddress, SocketAddress],
        tunnel: Tunnel,
        errand: Errand,
    ) -> None:
        """`ends`: the client's and ours, of the tunnel's own connection."""
        workload, service = errand.workload, errand.admitted.service
        record = ConnectionRecord(
            pod.node.ledger.next_number(),
            pod.uid,
            "inbound",
            "HBONE",
            *ends,
            errand.authority,
            forwarded_host=errand.named,
            source_workload=errand.source,
            source_identity=tunnel.peer,
            source_described=errand.described,
            destination_workload=workload.uid,
            destination_identity=workload.identity,
            destination_service=service.key if service else "",
        )
        super().__init__(pod, record, workload, errand.admitted.port)
        self._tunnel = tunnel
        self._errand = errand
        self._stream: TunnelStream | None = None

    @property
    def subject(self) -> Connection:
        """See Inbound: the same for all requests of an errand."""
        return self._errand.subject

    def check(self) -> str:
        """See Inbound."""
        self.pod.count_stream(1)
        return super().check()

    @property
    def leave(self) -> Callable[[], None]:
        """See ztunnel.ledger.Tracked."""
        return self.pod.request_left

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
        self.dial(self._errand.application)
        return stream

    def connected(self, sock: socket.socket) -> None:
        """The application is there: say 200, and move bytes."""
        self._dial = None
        if self.pod.closed:
            sock.close()
            self.abort("-", DRAINED)
            return
        stream = self._stream
        assert stream is not None and self.workload is not None
        announced = self._errand.admitted.announced
        if announced is not None and not self._announce(sock, announced):
            return
        says = self.pod.node.config.enhanced_baggage
        stream.answer(response_fields(200, self.pod.baggage(self.workload) if says else b""))
        stream.open()
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
