"""`make soak`: the pumps under random schedules: applications that are slow, end by halves, reset and vanish, in one loop.

Each seed is one schedule of up to 24 connections, through one or two tunnels or in plain. What must hold: bytes come in order
and none twice; who hears an end in order got all bytes and the other one's end; nothing is left of what is over; and the
windows of both ends agree. The kernel's timing has a part in it: what a seed found it finds again mostly, not always.
"""

import argparse
import socket
import time
from collections.abc import Callable
from random import Random

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import Flag
from ztunnel.dial import endpoint
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.frames import SIZES, Code
from ztunnel.handshakes import Handshakes
from ztunnel.hbone import repeating_fields, response_fields, single_fields
from ztunnel.hellos import end_of
from ztunnel.limits import Held
from ztunnel.loop import Deadlines, Loop
from ztunnel.passthrough import Passthrough
from ztunnel.stream import TunnelStream
from ztunnel.tls import Credentials, check_client
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified

MOST_STEPS, LEAST_S = 60_000, 40.0
"""Until both are over nothing hangs: what the kernel sends again waits for its time, however many steps are made meanwhile."""
_BYTES = Random(0).randbytes(1 << 22)
_REQUEST = (repeating_fields("10.0.0.1:80", b""), single_fields(endpoint(("10.0.0.9", 5)), "", bytes(24), None))


def connection(random: Random) -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection, with small buffers every other time."""
    small = random.random() < 0.5
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, random.choice((2048, 4096, 20_000)))
        one = socket.socket()
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, random.choice((2048, 8192, 30_000)))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, random.choice((2048, 4096, 20_000)))
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


class Application:
    """One end: sends what it has and its FIN, and reads, some of both in each step; it may reset or vanish in the middle."""

    def __init__(self, random: Random, sock: socket.socket) -> None:
        self._random, self._sock = random, sock
        start, self.size = random.randrange(1 << 20), random.choice((0, 1, 1000, 16_384, 100_000, random.randrange(1 << 21)))
        self.sends = _BYTES[start : start + self.size]
        self.temper = random.choice(("good",) * 6 + ("lazy", "lazy", "resets", "vanishes"))
        self.sent = 0
        self.got = bytearray()
        self.finished = self.closed = False
        self.heard = ""
        """How its connection ended: `end`, `reset`, or nothing when it left before."""
        self._leaves_at = random.randrange(self.size + 1), random.randrange(300_000)
        self._waits = random.random() < 0.3

    def step(self) -> None:
        """Do a little of everything."""
        if self.closed:
            return
        try:
            self._read()
            if self.temper in ("resets", "vanishes") and (
                self.sent >= self._leaves_at[0] or len(self.got) > self._leaves_at[1]
            ):
                if self.temper == "resets":
                    reset_on_close(self._sock)
                self._close()
                return
            self._write()
        except OSError:
            self.heard = "reset"
            self._close()
            return
        if self.finished and self.heard:
            self._close()

    def _read(self) -> None:
        if self._random.random() < (0.1 if self.temper == "lazy" else 0.7):
            try:
                data = self._sock.recv(self._random.choice((1, 100, 5000, 1 << 17)))
            except BlockingIOError:
                return
            self.got += data
            self.heard = "" if data else "end"

    def _write(self) -> None:
        random = self._random
        try:
            if self.sent < self.size and random.random() < 0.7:
                most = random.choice((1, 300, 16_000, 1 << 18))
                self.sent += self._sock.send(self.sends[self.sent : self.sent + most])
            elif self.sent == self.size and not self.finished and (not self._waits or self.heard or random.random() < 0.01):
                self._sock.shutdown(socket.SHUT_WR)
                self.finished = True
        except BlockingIOError:
            pass

    def _close(self) -> None:
        self.closed = True
        self._sock.close()

    def check(self, other: "Application | None", cut: bool) -> None:
        """What came from the other end; `cut`: somebody ended the connection from outside."""
        sends, tempers = (other.sends, {self.temper, other.temper}) if other is not None else (b"", set())
        assert self.got == sends[: len(self.got)], "other bytes"
        if self.heard == "end" and (other is None or other.temper != "vanishes"):  # whose own close is a FIN
            assert other is not None and other.finished, "an end that nobody said"
            assert len(self.got) == other.size, f"an end after {len(self.got)} bytes of {other.size}"
        if other is not None and not cut and tempers <= {"good", "lazy"}:
            assert self.heard == "end", "a reset that nobody sent"


class Account:
    """Whose connection it is: hears once how it ended."""

    def __init__(self) -> None:
        self.ended_with: tuple[Flag, str] | None = None
        self.client: Application | None = None
        self.server: Application | None = None

    def opened(self) -> None:
        """See ztunnel.stream_owner.Owner."""

    def declined(self, _stream: TunnelStream, _untouched: bool) -> bool:
        """See ztunnel.stream_owner.Owner."""
        return False

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.stream_owner.Owner."""
        assert self.ended_with is None, "ended twice"
        self.ended_with = flag, error


class Schedule:
    """One seed's."""

    def __init__(self, seed: int, credentials: Credentials) -> None:
        self.random, self.loop = Random(seed), Loop()
        self._own = self._watched()
        """What the loop itself watches."""
        self.held = Held(self.random.choice((512 << 20, 512 << 20, 200_000)), self.loop.held)
        self.accounts: list[Account] = []
        self.streams: dict[tuple[int, int], Account] = {}
        self.pumps: list[TunnelStream | Passthrough] = []
        self.later: list[Callable[[], None]] = []
        self.cut = False
        self.tunnels = [self._tunnel(number, credentials) for number in range(self.random.choice((0, 1, 1, 1, 2)))]

    def _application(self) -> tuple[socket.socket, Application]:
        ours, theirs = connection(self.random)
        reset_on_close(ours)
        return ours, Application(self.random, theirs)

    # Tunnels, both of whose ends are here

    def _tunnel(self, number: int, credentials: Credentials) -> tuple[Tunnel, Tunnel]:
        ours, theirs = connection(self.random)
        ends = end_of(credentials.client, False), end_of(credentials.server, True)
        door = Door(self, number)
        server = Tunnel(self.loop, theirs, ends[1], True, door, Handshakes(8), None, self.held)
        client = Tunnel(self.loop, ours, ends[0], False, door, Deadlines(10.0), None, self.held)
        while not (client.http.ready and server.http.ready):
            self.loop.turn(0.01)
        return client, server

    def request(self, tunnel: Tunnel, number: int) -> None:
        """A new connection through a tunnel."""
        account = Account()
        self.accounts.append(account)
        ours, account.client = self._application()
        stream = TunnelStream(tunnel, account)
        self.pumps.append(stream)
        for _ in range(self.random.randrange(4)):
            account.client.step()
        if self.random.random() < 0.7:
            stream.keep_early(b"")
        self.streams[number, tunnel.http.next_sid] = account
        stream.request(ours, *_REQUEST)

    def serve(self, account: Account, stream: TunnelStream) -> None:
        """The application of a request is there, or is not."""
        if stream.closed:
            return
        if self.random.random() < 0.1:
            stream.tunnel.http.reject(stream.sid, response_fields(503))
            stream.tunnel.loop.dirty[stream.tunnel] = None
            stream.drop()
            return
        ours, account.server = self._application()
        stream.answer(response_fields(200))
        stream.open()
        stream.attach(ours, speaks_first=False)

    def _plain(self) -> None:
        account = Account()
        self.accounts.append(account)
        (local, account.client), (remote, account.server) = self._application(), self._application()
        early = b""
        if self.random.random() < 0.4:
            account.client.step()
            if account.client.sent and not account.client.closed:
                early = local.recv(self.random.choice((1, 1000, 16_384)))
        self.pumps.append(Passthrough(self.loop, account, local, remote, self.held, early))

    # The schedule

    def run(self) -> None:
        """All of it, to the end of every connection. Raises: AssertionError for what must not be."""
        random, left = self.random, self.random.randrange(1, 25)
        steps, until = 0, time.monotonic() + LEAST_S
        while steps < MOST_STEPS or time.monotonic() < until:
            steps += 1
            if left and random.random() < 0.2:
                left -= 1
                self._begin()
            if self.later and random.random() < 0.2:
                self.later.pop(random.randrange(len(self.later)))()
            busy = self._busy()
            for application in busy:
                if random.random() < 0.8:
                    application.step()
            if random.random() < 0.6:
                self.loop.turn(0 if len(busy) > 2 else 0.0003)
            self._meddle()
            if not (left or self.later or self._busy()):
                break
        else:
            raise AssertionError("connections hang")
        self._check()

    def _busy(self) -> list[Application]:
        everyone = [one for account in self.accounts for one in (account.client, account.server)]
        return [one for one in everyone if one is not None and not one.closed]

    def _begin(self) -> None:
        number = self.random.randrange(len(self.tunnels)) if self.tunnels else -1
        if number < 0:
            self._plain()
        elif self.tunnels[number][0].http.room:
            self.request(self.tunnels[number][0], number)

    def _meddle(self) -> None:
        chance = self.random.random()
        if chance < 0.0005 and self.tunnels:
            self.random.choice(self.random.choice(self.tunnels)).drain()
        elif chance < 0.0007 and self.tunnels:
            self.cut = True
            self.random.choice(self.random.choice(self.tunnels)).end("ended from outside")
        elif chance < 0.0012 and self.pumps:
            self.cut = True
            self.random.choice(self.pumps).abort("-", "ended from outside")

    def _at_rest(self) -> bool:
        pairs = [pair for pair in self.tunnels if pair[0].open and pair[1].open]
        both = [*pairs, *((server, client) for client, server in pairs)]
        return all(one.open == other.open for one, other in self.tunnels) and all(
            one.http.window == other.http.receive_window
            and other.http.receive_window + other.http._credit == SIZES.connection_window
            and not (one.queued or one.http.streams or one.http.blocked)
            for one, other in both
        )

    def _watched(self) -> set[int]:
        return {fd for fd, handler in enumerate(self.loop._handlers) if handler is not None}

    def _check(self) -> None:
        until = time.monotonic() + LEAST_S
        while not (self._at_rest() and all(account.ended_with for account in self.accounts)):
            while self.later:  # requests whose clients left before they came
                self.later.pop()()
            for application in self._busy():
                application.step()
            self.loop.turn(0.003)
            assert time.monotonic() < until, "windows differ, streams are left, or somebody has not heard of an end"
        for account in self.accounts:
            client, server = account.client, account.server
            refused = server is None or self.held.refused
            if client is not None:
                client.check(server, self.cut or bool(refused))
            if server is not None:
                server.check(client, self.cut or bool(refused))
        everyone = [tunnel for pair in self.tunnels for tunnel in pair if tunnel.open]
        assert self._watched() - self._own == {tunnel._fd for tunnel in everyone}, "sockets are left"
        assert not self.held.bytes and not self.loop.held.bytes, "buffers are left"
        for tunnel in everyone:
            tunnel.close("-", "")


class Door:
    """Owns both ends of a tunnel, and takes requests: at once, later, or not."""

    def __init__(self, schedule: Schedule, number: int) -> None:
        self._schedule, self._number = schedule, number

    def check_peer(self, tunnel: Tunnel, peer: Verified) -> Identity:
        """See ztunnel.tunnel_owner.Owner."""
        return check_client(peer.names, "cluster.local")

    def established(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def settled(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def retired(self, tunnel: Tunnel) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        """See ztunnel.tunnel_owner.Owner."""

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        """See ztunnel.tunnel_owner.Owner."""
        schedule = self._schedule
        how = schedule.random.random()
        if how < 0.05:
            tunnel.http.reject(sid, response_fields(503))
            return None
        if how < 0.1:
            tunnel.http.refuse(sid, Code.REFUSED_STREAM)
            return None
        account, stream = schedule.streams[self._number, sid], TunnelStream(tunnel, Account())
        tunnel.http.adopt(stream, sid)
        schedule.pumps.append(stream)
        if how < 0.6:
            schedule.serve(account, stream)
        else:
            schedule.later.append(lambda: schedule.serve(account, stream))
        return stream


def main() -> None:
    """Run schedules for a while, from a seed on."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    flags = parser.parse_args()
    credentials, until, seed = Credentials(Authority().certificate_for(CLIENT)), time.monotonic() + flags.seconds, flags.seed
    while time.monotonic() < until:
        try:
            Schedule(seed, credentials).run()
        except AssertionError as error:
            raise SystemExit(f"seed {seed}: {error}") from error
        seed += 1
    print(f"seeds {flags.seed} to {seed - 1}: clean")


if __name__ == "__main__":
    main()
