"""A tunnel: one HTTP/2 connection over mutual TLS on one socket.

How it begins, who its peer is, and how it ends. The only place where TLS bytes move are its two halves: what comes is taken in
by ztunnel.inflow, what leaves is written by ztunnel.outflow.
"""

import ssl
from contextlib import suppress
from socket import AF_UNIX, IPPROTO_TCP, MSG_PEEK, SHUT_WR, TCP_MAXSEG, TCP_NOTSENT_LOWAT, socket

from mesh.identity import Identity
from ztunnel.authorities import Authorities
from ztunnel.client_hello import NO_APPLICATION_PROTOCOL, Hello
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import Flag
from ztunnel.fields import Fields
from ztunnel.flow import NOBODY, Stream
from ztunnel.frames import Code, ProtocolError, payload_in_whole_packets
from ztunnel.hellos import End
from ztunnel.http2 import Connection
from ztunnel.inflow import Inflow
from ztunnel.limits import Held
from ztunnel.loop import IN, Deadlines, Loop
from ztunnel.outflow import HIGH_WATER
from ztunnel.tls import reason_of
from ztunnel.tunnel_owner import Owner
from ztunnel.verification import PeerRefused, Verified
from ztunnel.wreck import Wreck


class Tunnel(Inflow):
    """One end of a tunnel; owns its socket."""

    __slots__ = (
        "_claim",
        "_hello",
        "lost_streams",
        "owner",
        "peer",
        "verified",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        end: End,
        server: bool,
        owner: Owner,
        handshakes: Deadlines,
        source: object = None,
        held: Held | None = None,
    ) -> None:
        """`source`: with whom it shares its place in the rota; `held`: on whose account its bytes wait, if not the node's."""
        super().__init__(loop, sock, end, server, source, held or loop.held)
        self.owner = owner
        self.http = Connection(server, self, loop.now, loop.sizes)
        self.peer: Identity | None = None
        self.lost_streams = 0
        """Streams that were open when the tunnel closed: each of them reports its own end."""
        self._handshakes = handshakes
        if sock.family != AF_UNIX:  # an inner tunnel's
            sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, HIGH_WATER)
            self.http.largest = payload_in_whole_packets(sock.getsockopt(IPPROTO_TCP, TCP_MAXSEG))
        self._hello = Hello() if server else None
        self.verified: Verified | None = None
        self._claim: Identity | None = None
        handshakes.add(self, loop.now, self._timed_out)
        loop.watch(self._fd, IN, self)
        if self._outgoing.pending:
            self._push()
        elif not server:
            self._handshake()  # and hear why there is no hello

    # --- how it begins

    def _speaks_http2(self, data: memoryview) -> bool:
        """Look at the protocols that a client offers, once its ClientHello is whole; who offers others only is closed."""
        hello = self._hello
        if hello is None:
            return True
        refusal = hello.refusal(data)
        if hello.done:
            self._hello = None
        if not refusal:
            return True
        try:
            self._send(NO_APPLICATION_PROTOCOL)
        except OSError:
            pass  # gone, or not reading
        self.close("TLS_FAILURE", f"tls handshake error: {refusal}")
        return False

    def _handshake(self) -> bool:
        try:
            self._tls.context.verifier.shake_hands(self._tls, self)  # type: ignore[attr-defined]
        except ssl.SSLWantReadError:
            self._push()
            return False
        except ssl.SSLError as error:
            self._push()  # the alert
            self.close("TLS_FAILURE", self._refusal(reason_of(error), isinstance(error, ssl.SSLCertVerificationError)))
            return False
        except PeerRefused as error:
            if error.alerted:
                self._push()
            else:
                reset_on_close(self._sock)
            self.close(error.flag, self._refusal(str(error), True))
            return False
        self.peer = self._claim
        self.established = True
        self.owner.established(self)
        return self.open

    def _refusal(self, reason: str, ours: bool) -> str:
        """Why there is no handshake; `ours`: we refuse the peer. In the words of Istio's ztunnel at either end."""
        if self.server or not ours:
            return f"tls handshake error: {reason}"
        return f"invalid peer certificate: {reason}"

    def judge(self, peer: Verified) -> None:
        """See ztunnel.verification.Asking."""
        self._claim = self.owner.check_peer(self, peer)

    def chain(self) -> list[bytes]:
        """See ztunnel.revocation.Connected."""
        return self.verified.chain if self.verified is not None else []

    def is_believed_by(self, authorities: Authorities) -> bool:
        """Whether its peer would be who it is by these roots; one that has yet to prove itself is not."""
        return self.peer is not None and authorities.still_believed(str(self.peer), self.chain())

    # --- sending

    def flush(self) -> None:
        """Write all small frames, and end when nothing is left to do, what has come and waits for its turn included."""
        self._write_small()
        if self.http.draining and self.http.finished and self.open and not self.queued and not self._late:
            self._finish()

    def _finish(self) -> None:
        """Say that this was all, and close when the peer has heard it, and closes.

        What it still says to a socket that is closed is answered with a reset, and what was on its way to it is lost.
        """
        if not self._peer_has_ended():
            with suppress(OSError):
                self._sock.shutdown(SHUT_WR)
                return
        self.close("-", "")

    def _peer_has_ended(self) -> bool:
        """Whether nothing more will come. A peer that parts with an idle tunnel closes it behind its GOAWAY."""
        try:
            return not self._sock.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # --- what the connection asks of its owner

    def requested(self, sid: int, fields: Fields) -> Stream | None:
        """Hand a request on."""
        return self.owner.requested(self, sid, fields)

    def retired(self) -> None:
        """Hand it on."""
        if self.open:
            if self.http.draining:
                self.loop.dirty[self] = None
            self.owner.retired(self)

    # --- ends

    def keep_alive(self, now: float) -> None:
        """Ask whether the peer is there, or give it up. Due every PING_INTERVAL_S."""
        if self.established and not self.http.tick(now):
            self.http.fail(Code.NO_ERROR)
            self._write_small()
            self.close("-", "h2 failed: keep-alive timed out")
        elif self.http.out:
            self.loop.dirty[self] = None

    def drain(self) -> None:
        """Take no new streams; open ones go on."""
        self.http.drain()
        self.loop.dirty[self] = None

    def end(self, error: str, flag: Flag = "-") -> None:
        """Say GOAWAY and close, with all its streams."""
        if self.established and self.open:
            self.http.fail(Code.NO_ERROR)
            self._write_small()
        self.close(flag, error)

    def fail(self, error: ProtocolError) -> None:
        """The peer broke the protocol: say so and close."""
        self.offence = error.code.name
        self.http.fail(error.code)
        self._write_small()
        self.close("-" if self.http.ready else "H2_HANDSHAKE_FAILURE", f"h2 failed: {error}")

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.close("-", f"internal error: {error}")

    def _timed_out(self) -> None:
        self.close("H2_HANDSHAKE_FAILURE" if self.established else "TLS_FAILURE", "tls handshake error: timed out or evicted")

    def _lost(self, why: str) -> None:
        """The socket is gone. An idle connection may go like that; a stream that is cut off is an error of its own."""
        if not self.established:
            self.close("TLS_FAILURE", f"tls handshake error: {why}")
        elif not self.http.ready:
            self.close("H2_HANDSHAKE_FAILURE", f"h2 failed: {why}")
        else:
            self.close("-", f"h2 failed: {why}" if self.http.streams else "")

    def close(self, flag: Flag, error: str) -> None:
        """Close the socket and lose every stream."""
        if not self.open:
            return
        self.open = False
        if self._handshakes is not None:
            self._handshakes.discard(self)
            self._handshakes = None
        self.loop.forget_closing(self._fd)
        self._sock.close()
        self.held.add(-self.queued)
        self.queued = 0
        self._waiting = None
        self.loop.dirty.pop(self, None)
        self.loop.hurry(self)
        self._forget_rest()
        streams = self.http.abandon()
        self.lost_streams = len(streams)
        try:
            Wreck(self.loop, self._source, streams, flag, error).go_on()
        finally:  # a stream may fail
            self.owner.closed(self, flag, error)
            self.http.owner = NOBODY  # the two refer to each other, and OpenSSL's memory must not wait for a collector
