"""Accepting connections on a listener that all workers share.

The kernel wakes the worker that is first in line of those that wait for anything to happen. A pod's own connections have a home
(ztunnel.headroom): the others stand behind it in that line, so they are woken where it is in the middle of a turn, and then
leave who has come to it for a moment. While the home is busy, or away, who has taken a connection goes to the end of the line,
and so does who has taken one of others, which have no home.

Who moves bulk is not in line while another worker has time: a connection that it took would wait for its turns, at each end of
a tunnel and both ways, however many tunnels there are: 1.6 ms instead of 0.4.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable

from wire.descriptors import MENDS, SAYS_SO_EVERY_S
from ztunnel.closing import reset_on_close
from ztunnel.dial import endpoint
from ztunnel.ledger import SocketAddress
from ztunnel.pod import Pod
from ztunnel.pod_netns import Socket, set_tcp_options

ACCEPTS_PER_EVENT = 64
"""Then others get their turn."""
ACCEPTS_BEFORE_CLOCK = 8
"""A millisecond: between so many, whether the turn is late already (see Loop.is_late)."""
STRANGERS_PER_EVENT = 8
"""A quarter of a millisecond, where the whole network may come."""
_SINGLES = 16
"""So many events in a row that bring one connection each are a reason to look for a second one."""
LAST_ACCEPTS = 1024
"""As many as the kernel queues."""
COURTESY_S = 0.01
"""How long the others leave connections to a pod's home: as long as it takes to accept a hundred that come at once."""
MOST_COURTESY = 4
"""So many times as long, where it has taken all of them again and again: who looks costs as much as it takes to accept four."""
_SETTLED_S = 0.5
"""By then the home of a new pod listens, however late it began."""
PAUSE_S = 0.1
"""After the system ran out of something: accepting again at once would only spin."""
_EXHAUSTED = {**MENDS, errno.ENOBUFS: "free memory", errno.ENOMEM: "free memory"}
_log = logging.getLogger("ztunnel.worker")

Accept = Callable[[Pod, socket.socket, SocketAddress], None]


class Listener:
    """One of a pod's three listeners; owns its descriptor."""

    def __init__(self, pod: Pod, fd: int, accept: Accept, at_once: int = ACCEPTS_PER_EVENT, has_home: bool = False) -> None:
        """`has_home`: whether one worker takes all connections as long as it has time."""
        self._pod = pod
        self._headroom = pod.node.headroom if has_home else None
        self._takes_turns = not has_home and pod.node.headroom is not None
        """Tunnels of others last: whoever is first in line would have all of them, however much they carry later."""
        self._home = self._headroom.home_of(pod.uid) if self._headroom is not None else 0
        self._behind_since = 0.0
        """When we went behind the home, where that is another worker: it stands before us while it keeps its promise."""
        self._settled_at = pod.node.loop.now + _SETTLED_S
        self._at_once = at_once
        self._accept = accept
        self._sock = Socket(fileno=fd)
        self._sock.setblocking(False)
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 1:
            self._sock.close()
            raise OSError(errno.EINVAL, f"descriptor {fd} is not a listening socket")
        set_tcp_options(self._sock, pod.node.config.tuning)  # what it accepts inherits them
        self._kind = (self._sock.family, self._sock.type, self._sock.proto)
        self.port: int = self._sock.getsockname()[1]
        self._open = True
        self._expected = 1
        self._full = 0
        """Events in a row that brought as many as were expected."""
        self._aside = False
        """The other workers take all who come."""
        self._draining = False
        self._left = 0
        """How many more of those that were left to the home are taken at most."""
        self._courtesy = 1
        """How many times as long the next one is left to the home."""
        self._watch()

    def stand_behind(self) -> None:
        """To be called now and then: a home that has time is to stand before us when somebody comes, not only after."""
        headroom, now = self._headroom, self._pod.node.loop.now
        if headroom is None or self._home == headroom.own or now < self._settled_at:
            return
        stale = self._behind_since <= max(self._settled_at, headroom.lapsed_at[self._home])
        if stale and headroom.has_time(self._home, now):
            self._fall_behind()

    def stand_aside(self, aside: bool) -> None:
        """Leave all who come to the other workers, or do so no longer; of who is here already we alone may have been told."""
        if aside == self._aside:
            return
        self._aside = aside
        if not aside:
            self._watch()
        elif self._open:
            loop = self._pod.node.loop
            loop.forget(self._sock.fileno())
            loop.afterwards.append((self._come_back, self))

    def _watch(self) -> None:
        in_line = self._aside or self._pod.node.loop.watches(self._sock.fileno())  # two pauses may have begun at once
        if self._open and not in_line and not self._draining:
            self._pod.node.loop.watch_shared(self._sock.fileno(), self)

    def on_event(self, _events: int) -> None:
        """Connections wait, unless another worker was faster."""
        headroom = self._headroom
        if headroom is None:
            if self._take_who_waits() and self._takes_turns:
                self._to_the_end()
        elif not headroom.has_time(self._home, self._pod.node.loop.now):
            self._take_who_waits()
            self._to_the_end()
            self._behind_since = 0.0
        elif self._home == headroom.own:
            self._take_who_waits()
        elif self._behind_since > headroom.lapsed_at[self._home]:  # else it may have gone to the end meanwhile
            self._leave_to_home()
        else:
            self._take_who_waits()
            self._fall_behind()

    def _leave_to_home(self) -> None:
        loop = self._pod.node.loop
        loop.forget(self._sock.fileno())
        loop.call_at(loop.now + COURTESY_S * self._courtesy, self._look_after)

    def _look_after(self) -> None:
        """Come back to the line; where the home has left nobody behind, it will be trusted for longer."""
        self._come_back()
        self._courtesy = 1 if self._left < self._at_once else min(2 * self._courtesy, MOST_COURTESY)

    def _come_back(self) -> None:
        if self._draining:
            return
        self._watch()
        self._left = self._at_once  # all who are still there: where the home hangs, the next would wait as long again
        self.go_on()

    def go_on(self) -> None:
        """See ztunnel.rota.Continued: take some of those that were left to the home, or come last, while there are any."""
        if not self._open:
            return
        self._expected = min(ACCEPTS_BEFORE_CLOCK, self._left)
        accepted = self._take_who_waits(in_time=False)
        self._left -= accepted
        if accepted == ACCEPTS_BEFORE_CLOCK and self._left:
            self._pod.node.loop.rota.add(self, self)
        elif self._draining:
            self.close()

    def _fall_behind(self) -> None:
        self._to_the_end()
        self._behind_since = self._pod.node.loop.now

    def _to_the_end(self) -> None:
        if self._open and self._pod.node.loop.watches(self._sock.fileno()):
            self._pod.node.loop.forget(self._sock.fileno())
            self._watch()

    def _take_who_waits(self, in_time: bool = True) -> int:
        """`in_time`: as long as the turn is not late; who is left is told of in the next one."""
        accepted, late = 0, self._pod.node.loop.is_late
        while accepted < self._expected:
            if in_time and accepted and not accepted % ACCEPTS_BEFORE_CLOCK and late():
                return accepted
            try:
                accepted_fd, raw = self._sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._survive(error)
                return accepted
            accepted += 1
            self._take(Socket(*self._kind, accepted_fd), endpoint(raw))
        self._expect(accepted)
        return accepted

    def _expect(self, accepted: int) -> None:
        # Asking once more than there are connections costs a call for each: ask for more only where more than one came at
        # once, or one each time for a while.
        if accepted < self._expected:
            self._expected, self._full = max(1, accepted), 0
            return
        self._full += 1
        if accepted > 1 or self._full >= _SINGLES:
            self._expected, self._full = min(2 * accepted, self._at_once), 0

    def drain(self) -> None:
        """Take who has come, some a turn, and then close; bounded, as others may still come."""
        if self._open and not self._draining:
            self._draining = True
            self._pod.node.last_accepts[self] = None
            self._pod.node.loop.forget(self._sock.fileno())
            self._left = LAST_ACCEPTS
            self._pod.node.loop.rota.add(self, self)  # not here: one of them that is bad would end whoever has us drain

    def _take(self, sock: socket.socket, peer: SocketAddress) -> None:
        sock.setblocking(False)
        if not self._pod.has_room():
            reset_on_close(sock)
            sock.close()
            return
        try:
            self._accept(self._pod, sock, peer)
        except OSError as error:  # reset before we looked at it
            _log.debug("connection from %s was gone at once: %s", peer, error)
            sock.close()

    def _survive(self, error: OSError) -> None:
        mend = _EXHAUSTED.get(error.errno or 0)
        if mend is None:
            raise error
        node, loop = self._pod.node, self._pod.node.loop
        if loop.now >= node.complains_at:
            node.complains_at = loop.now + SAYS_SO_EVERY_S  # for all pods of a worker: each tries ten times a second
            _log.warning("connections wait: cannot accept: %s: %s", os.strerror(error.errno or 0), mend)
        loop.forget(self._sock.fileno())
        loop.call_at(loop.now + PAUSE_S, self._watch)

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler: a listener is never given up for one bad connection."""
        _log.error("listener %d of pod %s: %s", self.port, self._pod.uid, error)
        if self._draining and self._open:
            self._left = max(0, self._left - ACCEPTS_PER_EVENT)  # what is broken for good is not asked a thousand times
            self._pod.node.loop.rota.add(self, self)

    def close(self) -> None:
        """Stop; the kernel gives waiting connections to the other workers, or resets them with the last one."""
        if self._open:
            self._open = False
            self._pod.node.loop.rota.discard(self, self)
            self._pod.node.last_accepts.pop(self, None)
            self._pod.node.loop.forget(self._sock.fileno())
            self._sock.close()
