"""Tunnels of other proxies to this node's pods (15008): greeted as the pod's identity, and then asked what they want.

The order of checks is fixed: who is it (TLS), what does it want (400, 503), may it (401), is the application there (503),
and only then 200. The first two are here, the others in ztunnel.inbound.
"""

import socket
from functools import partial

from mesh.identity import Identity
from mesh.workload import Workload
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import Flag
from ztunnel.dial import endpoint
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.frames import Code
from ztunnel.gate import Rejected, admit
from ztunnel.hbone import BadRequest, ConnectRequest, Malformed, read_request, response_fields
from ztunnel.hellos import end_of
from ztunnel.inbound import Errand, InboundRequest, errand_of
from ztunnel.ledger import DRAINED, SocketAddress
from ztunnel.loop import ERROR, IN
from ztunnel.missing import missing_inbound
from ztunnel.penance import CROWD
from ztunnel.pod import Pod
from ztunnel.stream import TunnelStream
from ztunnel.tls import Credentials, check_client
from ztunnel.tuning import HANDSHAKE_S
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified
from ztunnel.waiting import WaitingRequest


def accept_hbone(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
    """A proxy connects to 15008: greet it as the pod's own identity, once it speaks and both are known."""
    Arrival(pod, sock, peer).start()


class Arrival:
    """One inbound tunnel and where it came from. It costs next to nothing until it says something."""

    def __init__(self, pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
        self.pod = pod
        self.peer = peer
        self.local: SocketAddress
        """Asked for when it speaks."""
        self._sock: socket.socket | None = sock
        self._identity: Identity | None = None
        self._trust_domain = ""
        self._errand: Errand | None = None
        """Of the last request: the next one mostly wants the same."""

    def start(self) -> None:
        """Wait for its first words, for as long as a handshake may take."""
        node, sock, pod = self.pod.node, self._sock, self.pod
        assert sock is not None
        bound = node.handshakes.make_room(self.peer[0], pod.uid, pod.holder.limits.handshakes)
        if bound is not None:
            (node if bound == "node" else pod).holder.count("handshakes")
        pod.guests[self] = None
        self._begin_time()
        node.loop.watch(sock.fileno(), IN, self)

    def _begin_time(self) -> None:
        handshakes = self.pod.node.handshakes
        handshakes.add(self, self.pod.node.loop.now, self._not_greeted)
        handshakes.belongs(self, self.peer[0], self.pod.uid)

    def on_event(self, events: int) -> None:
        """It speaks, or is gone: find the pod's workload, then its certificate, then greet."""
        sock = self._sock
        if sock is None:
            return
        if events & ERROR:
            self.turn_away("TLS_FAILURE", "tls handshake error: connection closed by the peer")
            return
        self.local = endpoint(sock.getsockname())
        self.pod.node.handshakes.discard(self)
        self.pod.node.when_known(self, self._try_workload, self._no_workload)
        if self._sock is not None:  # it waits, and its words with it
            self.pod.node.loop.forget(sock.fileno())

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.turn_away("-", f"internal error: {error}")

    def _try_workload(self) -> bool:
        workload = self.pod.workload()
        if workload is None:
            return False
        self._identity = workload.identity
        self._trust_domain = workload.trust_domain
        self.pod.node.vault.wait(workload.identity, self, self._greet)
        return True

    def _no_workload(self) -> None:
        self.turn_away("IDENTITY_ERROR", f"unknown destination: no workload for pod {self.pod.namespace}/{self.pod.name}")

    def _greet(self, credentials: Credentials | str) -> None:
        if self._sock is None:
            return
        if isinstance(credentials, str):
            self.turn_away("IDENTITY_ERROR", credentials)
            return
        node, source = self.pod.node, self.peer[0]
        now = node.loop.now
        if node.handshakes.count(source) >= CROWD:
            node.penance.crowds(source, now)
        wait_s = node.penance.wait_s(source, now)
        if not wait_s:
            self._welcome(credentials)
            return
        self._begin_time()
        if wait_s < HANDSHAKE_S:  # else it is shown out before: thousands that say one byte and go would be kept for it
            node.loop.call_at(now + wait_s, self._welcome_late)

    def _welcome_late(self) -> None:
        """By what is believed now: it may have changed while this one waited."""
        identity = self._identity
        assert identity is not None
        credentials = self.pod.node.vault.find(identity)
        if credentials is None:
            self.turn_away("IDENTITY_ERROR", f"{identity} has no certificate any more")
        else:
            self._welcome(credentials)

    def _not_greeted(self) -> None:
        self.turn_away("TLS_FAILURE", "tls handshake error: timed out or evicted before it was greeted")

    def _welcome(self, credentials: Credentials) -> None:
        node, sock = self.pod.node, self._sock
        if sock is None:
            return
        if self.pod.closed:
            self.turn_away("-", DRAINED)
            return
        self._sock = None
        node.handshakes.discard(self)
        pod, source = self.pod, self.peer[0]
        tunnel = Tunnel(
            node.loop, sock, end_of(credentials.server, server=True), True, self, node.handshakes, source, pod.held_of(source)
        )
        node.handshakes.belongs(tunnel, source, pod.uid)
        pod.guests.pop(self, None)
        pod.tunnels[tunnel] = None
        surplus = node.add_inbound_tunnel(tunnel, pod.uid, source)
        if pod.draining:
            tunnel.drain()
        if tunnel not in surplus:
            tunnel.on_event(IN)
        for one in surplus:  # when the answer is on its way: the other end works meanwhile
            one.end("")

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
            local = endpoint(sock.getsockname())
            node.loop.forget_closing(sock.fileno())
            reset_on_close(sock)
            sock.close()
            node.fail_early(self.pod.uid, "inbound", self.peer, local, flag, error)

    # --- what the tunnel asks

    def check_peer(self, tunnel: Tunnel, peer: Verified) -> Identity:
        """See ztunnel.tunnel_owner.Owner."""
        self.pod.node.revocations.check(tunnel.server, peer.chain)
        return check_client(peer.names, self._trust_domain, self.pod.node.config.trust_domain_aliases)

    def established(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""
        node = self.pod.node
        allowance = node.penance.allowance(self.peer[0], tunnel.peer, node.loop.now)
        if allowance < 1:
            tunnel.http.restrain(allowance)

    def retired(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        """See ztunnel.tunnel_owner.Owner."""
        node = self.pod.node
        node.remove_tunnel(tunnel)
        if tunnel.offence:
            node.penance.offended(self.peer[0], tunnel.peer, node.loop.now)
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
            waiting = WaitingRequest(tunnel, lambda stream, error: self._go_on(stream, request, error))
            if waiting.ask(node.demands, sid, missing):
                return waiting.stream
        return self._admit(tunnel, sid, workload, request)

    def _admit(
        self, tunnel: Tunnel, sid: int, workload: Workload, request: ConnectRequest, stream: TunnelStream | None = None
    ) -> Stream | None:
        node, errand = self.pod.node, self._errand
        if errand is None or not errand.is_again(node, workload, request):
            outcome = self._make_out(tunnel, workload, request)
            if isinstance(outcome, Rejected):
                self._reject(tunnel, sid, outcome.status, outcome.reason)
                return None
            errand = self._errand = outcome
        return InboundRequest(self.pod, (self.peer, self.local), tunnel, errand).start(sid, stream)

    def _make_out(self, tunnel: Tunnel, workload: Workload, request: ConnectRequest) -> Errand | Rejected:
        """What a request wants that is not like the tunnel's last: what another tunnel's wanted, or something new."""
        pod, node, local, peer = self.pod, self.pod.node, self.local[0], tunnel.peer
        assert peer is not None  # no request is read before the handshake is done
        ends, last = (self.peer[0], local), pod.errand
        if last is not None and last.is_between(ends, peer) and last.is_again(node, workload, request):
            return last
        outcome = admit(node.inventory, node.config.network, workload, local, request, node.reserved_ports)
        if isinstance(outcome, Rejected):
            return outcome
        pod.errand = errand_of(pod, workload, ends, peer, request, outcome)
        return pod.errand

    def _go_on(self, stream: TunnelStream, request: ConnectRequest, error: str) -> None:
        """What a request waited for is known, or why not."""
        tunnel, workload = stream.tunnel, self.pod.workload()
        tunnel.loop.dirty[tunnel] = None
        admitted = None
        if error or workload is None:
            self._reject(tunnel, stream.sid, 503, error or "unknown destination")
        else:
            admitted = self._admit(tunnel, stream.sid, workload, request, stream)
        if admitted is None:
            stream.drop()

    def _reject(self, tunnel: Tunnel, sid: int, status: int, reason: str) -> None:
        tunnel.http.reject(sid, response_fields(status))
        self._fail(tunnel, reason)

    def _fail(self, tunnel: Tunnel, reason: str) -> None:
        self.pod.node.fail_early(self.pod.uid, "inbound", self.peer, self.local, "CONNECT", reason, tunnel.peer)
