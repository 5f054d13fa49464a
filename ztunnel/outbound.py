"""A connection of a pod of this node, from the decision where it goes to its end: carried in a tunnel or in plain."""

import socket
from collections.abc import Callable
from random import randbytes

from mesh.workload import Address, NetworkAddress
from ztunnel.attempts import Attempts
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import ConnectionRecord, Flag
from ztunnel.dial import Dial, text_of
from ztunnel.fields import Fields, Repeating
from ztunnel.hbone import repeating_fields, single_fields
from ztunnel.inner_tunnel import InnerStream, InnerTunnel
from ztunnel.ledger import DRAINED, SocketAddress, Tracked
from ztunnel.outliers import Choice
from ztunnel.passthrough import Passthrough
from ztunnel.pod import Pod
from ztunnel.pool import Key
from ztunnel.questions import Asker
from ztunnel.route import Refused, Request, Route, in_mesh
from ztunnel.stream import TunnelStream
from ztunnel.tls import Credentials
from ztunnel.tunnel import Tunnel
from ztunnel.ways import Way, way_of

_TRACE_BYTES = 24


class Outbound(Tracked):
    """One connection of a local application.

    Where one endpoint of several does not take it, another is tried: as long as none of its bytes can have been delivered, and
    a few times at most. The socket is here until bytes can flow; then the pump has it, and gives it back to another attempt.
    """

    __slots__ = (
        "_attempts",
        "_credentials",
        "_dial",
        "_early",
        "_inner",
        "_request",
        "_sock",
        "_trace",
        "_way",
        "pod",
    )

    def __init__(self, pod: Pod, sock: socket.socket, peer: SocketAddress, request: Request) -> None:
        """`request`: what the application asked for."""
        destination = request.destination, request.port
        record = ConnectionRecord(
            pod.node.ledger.next_number(),
            pod.uid,
            "outbound",
            "TCP",
            peer,
            destination,
            original_destination=destination,
            source_workload=request.client.uid,
        )
        super().__init__(pod.node.ledger, record)
        self.pod = pod
        self._request = request
        self._attempts = Attempts(pod, request)
        self._early = b""
        self._sock: socket.socket | None = sock
        self._dial: Dial | None = None
        self._way: Way | None = None
        self._credentials: Credentials | None = None
        self._inner: InnerTunnel | None = None
        self._trace = b""

    def start(self, way: Way | Refused) -> None:
        """Go where the decision says."""
        self.pod.connections += 1
        self.ledger.register(self)
        if self.pod.closed:
            self.ended("-", DRAINED)
        elif isinstance(way, Refused):
            self._name(way)
            self.ended(way.flag, way.reason)
        else:
            self._try(way)

    def _name(self, route: Route | Refused) -> None:
        self.record.destination_workload = route.workload.uid if route.workload else ""
        self.record.destination_service = route.service.key if route.service else ""

    def _try(self, way: Way) -> None:
        self._attempts.begin(way)
        self._name(way.route)
        self.record.protocol = way.route.protocol
        self.record.hop = way.route.hop
        self._go(way)

    def _not_taken(self, flag: Flag, error: str, untouched: bool = False) -> None:
        """Who was chosen does not take the connection, or (`untouched`) never heard of it: another one may, or the same."""
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.end()
        if not self.pod.closed and (untouched or self._attempts.failed(self._choice)):
            other = self._attempts.another(self._way if self.was_open else None)
            if other is not None:
                self._go_elsewhere(other)
                return
        self.ended(flag, error)

    @property
    def _choice(self) -> Choice | None:
        """Who is tried, where others could have been."""
        return self._way.route.choice if self._way else None

    def _go_elsewhere(self, way: Way | Refused) -> None:
        record = self.record
        record.hbone_destination, record.source_identity, record.destination_identity = "", None, None
        if isinstance(way, Refused):
            self._name(way)
            self.ended(way.flag, way.reason)
        else:
            self._try(way)

    def _is_rerouted(self) -> bool:
        """Go where the mesh would have it by now, if that is elsewhere; whether it is."""
        way = self._attempts.elsewhere()
        if way is not None:
            self._go_elsewhere(way)
        return way is not None

    def declined(self, stream: TunnelStream, untouched: bool) -> bool:
        """See ztunnel.stream_owner.Owner."""
        lost = self.pod.closed or (not untouched and not self._attempts.failed(self._choice))
        way = None if lost else self._attempts.another(self._way if self.was_open else None)
        if way is None:
            return False
        self.pump = None
        self._sock, self._early = stream.give_back()
        self._go_elsewhere(way)
        return True

    def opened(self) -> None:
        """See ztunnel.stream_owner.Owner."""
        choice = self._choice
        if choice is not None:
            self.pod.outliers.succeeded(choice)
        self._trace = b""
        super().opened()

    def _go(self, way: Way) -> None:
        self._way, route = way, way.route
        if way.key is not None and way.peer is not None:
            self._start_tunnelled(way, way.key, way.peer)
        elif route.address is not None:
            self._find_out(route, route.address)
        else:
            version, client = self._request.destination.version, self._request.client
            self.pod.node.resolver.resolve(route.hostname, version, self, self._resolved, client)

    def _resolved(self, address: Address | None) -> None:
        assert self._way is not None
        if self._is_rerouted():
            return
        route = self._way.route
        if address is None:
            self._not_taken("CONNECT", f"no address found for {route.hostname}: ask this node's nameservers")
            return
        outcome = route.resolved(address)
        if isinstance(outcome, Refused):
            self.ended(outcome.flag, outcome.reason)
        else:
            self._go_to(outcome)

    def _go_to(self, route: Route) -> None:
        """An address is known now, or who has it."""
        found = in_mesh(self.pod.node.inventory, route)
        self._name(found)
        self.record.protocol = found.protocol
        self._go(way_of(self._request, found))

    def _find_out(self, route: Route, address: Address) -> None:
        """Dial in plain; on demand not before it is known whether an address that an entry tells of is a pod's."""
        demands, listed = self.pod.node.demands, route.workload
        if demands is not None and listed is not None and not listed.is_pod:
            names = [str(NetworkAddress(listed.network, address))]
            if demands.ask(self, Asker(self.pod.uid, self._request.client.identity), lambda: names, self._found_out):
                return
        self._start_plain(route, address)

    def _found_out(self, error: str) -> None:
        if error:
            self.ended("CONNECT", error)
        elif not self._is_rerouted():
            assert self._way is not None
            self._go_to(self._way.route)

    def _start_plain(self, route: Route, address: Address) -> None:
        node = self.pod.node
        self.record.destination = (address, route.port)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            sock = self.pod.netns.make_socket(family, None)
        except OSError as error:
            self.not_connected("CONNECT", f"cannot make a socket: {error}")
            return
        reset_on_close(sock)
        node.in_plain[self] = None
        self._dial = Dial(node.loop, node.dials, self, sock, (text_of(address), route.port))
        self._dial.start()

    def mesh_changed(self) -> None:
        """Look again, as long as nobody has answered in plain: who is dialled may be of the mesh by now."""
        way = self._attempts.elsewhere()
        if way is not None and self._dial is not None:
            self._give_up_dial(self._dial)
            self._go_elsewhere(way)

    def _give_up_dial(self, dial: Dial) -> None:
        dial.cancel()
        self._dial_over()

    def _dial_over(self) -> None:
        self._dial = None
        self.pod.node.in_plain.pop(self, None)

    def connected(self, sock: socket.socket) -> None:
        """See ztunnel.dial.Owner."""
        self._dial_over()
        if self.pod.closed:
            sock.close()
            self.ended("-", DRAINED)
            return
        client, self._sock = self._sock, None
        assert client is not None
        self.pump = Passthrough(self.pod.node.loop, self, client, sock, self.pod.holder.held, self._early)

    def not_connected(self, flag: Flag, error: str) -> None:
        """See ztunnel.dial.Owner."""
        self._dial_over()
        self._not_taken(flag, error)

    def _start_tunnelled(self, way: Way, key: Key, peer: SocketAddress) -> None:
        record = self.record
        record.destination = peer
        record.hbone_destination = way.authority
        record.source_identity = key.source
        record.destination_identity = way.identity
        vault = self.pod.node.vault
        credentials = self._credentials = vault.find(key.source)
        if credentials is not None:
            self.pod.pool.request(key, credentials, self)
        else:
            vault.wait(key.source, self, self._with_credentials)

    def _with_credentials(self, credentials: Credentials | str) -> None:
        assert self._way is not None and self._way.key is not None
        if isinstance(credentials, str):
            self.ended("IDENTITY_ERROR", credentials)
            return
        self._credentials = credentials
        self.pod.pool.request(self._way.key, credentials, self)

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """See ztunnel.pool.Waiter."""
        if self.pod.closed:
            self.ended("-", DRAINED)
            return
        if self._is_rerouted():
            return
        way, credentials = self._way, self._credentials
        assert way is not None and way.route.address is not None and credentials is not None
        route = way.route
        if route.protocol == "DOUBLEHBONE":
            self._inner = InnerTunnel(self.pod, self, route.inner_expected, way.route.address)
            self._inner.start(tunnel, credentials, *self._fields(None))
        else:
            self._open(TunnelStream(tunnel, self), None)

    def inner_ready(self, tunnel: Tunnel) -> None:
        """See ztunnel.inner_tunnel.Owner."""
        way = Refused(DRAINED, "-") if self.pod.closed else self._attempts.elsewhere()
        if way is not None:
            self._inner = None
            tunnel.end("")
            self._go_elsewhere(way)
            return
        self.record.destination_identity = tunnel.peer
        self._open(InnerStream(tunnel, self, self._heard), self.pod.node.config.network)

    def inner_failed(self, flag: Flag, error: str, untouched: bool) -> None:
        """See ztunnel.inner_tunnel.Owner."""
        self._not_taken(flag, error, untouched)

    def _open(self, stream: TunnelStream, network: str | None) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self.pump = stream
        if not self._attempts.is_last and self._inner is None:
            stream.keep_early(self._early)
        stream.request(sock, *self._fields(network), self._early)

    def _fields(self, network: str | None) -> tuple[Repeating, bytes]:
        """The request's fields; `network` for the one that a gateway passes on. Both of a connection have one trace."""
        way = self._way
        assert way is not None
        trace = self._trace = self._trace or randbytes(_TRACE_BYTES)
        hostname = way.route.service.hostname if way.route.service else ""
        return (
            repeating_fields(way.authority, self.pod.baggage(self._request.client)),
            single_fields(self.record.source, hostname, trace, network),
        )

    def _heard(self, fields: Fields) -> None:
        """Who answers behind a gateway is known by what it says."""
        identity = self.record.destination_identity
        if identity is not None:
            said = b",".join(value for name, value in fields if name == b"baggage")
            self.record.destination_described = self.pod.node.descriptions.read(identity, said)

    def no_tunnel(self, flag: Flag, error: str) -> None:
        """See ztunnel.pool.Waiter."""
        self._not_taken(flag, error)

    def is_there(self) -> bool:
        """See ztunnel.pool.Waiter."""
        assert self._sock is not None
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            self.ended("-", "")
            return False
        return True

    @property
    def lasts(self) -> bool:
        """See ztunnel.ledger.Tracked: not with a tunnel of its own."""
        return self.was_open and self._inner is None

    @property
    def leave(self) -> Callable[[], None]:
        """See ztunnel.ledger.Tracked."""
        return self.pod.connection_left

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.ledger.Tracked."""
        if self._dial is not None:
            self._give_up_dial(self._dial)
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.end()
        way, sock, self._sock = self._way, self._sock, None
        if sock is not None:
            if way is not None and way.route.address is None:
                self.pod.node.resolver.forget_waiter(self)
            if way is not None and way.key is not None:
                self.pod.pool.cancel(way.key, self)
                self.pod.node.vault.forget_waiter(self._request.client.identity, self)
            if self.pod.node.demands is not None:
                self.pod.node.demands.forget(self)
            sock.close()
        if error and self._attempts.count > 1 and not self.was_open:
            error += f" (at attempt {self._attempts.count})"
        super().ended(flag, error)
