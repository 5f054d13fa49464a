"""How a tunnel's TLS begins: an end over memory; of a client with its hello, of which a few are made ahead.

A hello takes 90 us between other work (180 with X25519MLKEM768), most of it for the key that it offers, and whoever waits for a
tunnel waits for it. So where tunnels are made again and again the next ones' hellos are there, made while a request was on its
way, and a few at a time: behind another one each takes half as long. Each is used once, by one identity; what is not used
within a few seconds is given back.
"""

import logging
import ssl
from typing import NamedTuple

from ztunnel.tls import Credentials

AHEAD = 4
"""Of one identity, made when none is left: a quarter of a millisecond (half of one with X25519MLKEM768)."""
MOST = 64
"""Of a worker: 45 KiB each, as OpenSSL has them."""
_log = logging.getLogger("ztunnel.worker")


class End(NamedTuple):
    """One end of a TLS connection, and the bytes between it and the network."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


def end_of(context: ssl.SSLContext, server: bool) -> End:
    """A new end; of a client its hello is in `outgoing`, unless it can make none."""
    end = _end_of(context, server)
    if not server:
        try:
            end.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return _end_of(context, server)  # whoever begins with it hears why not
    return end


def _end_of(context: ssl.SSLContext, server: bool) -> End:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return End(context.wrap_bio(incoming, outgoing, server_side=server), incoming, outgoing)


class Hellos:
    """Those of one worker's clients."""

    def __init__(self) -> None:
        self._made: dict[Credentials, list[End]] = {}
        self._taken: dict[Credentials, int] = {}
        """How many since the last `release_idle`."""

    def __len__(self) -> int:
        return sum(map(len, self._made.values()))

    def take(self, credentials: Credentials) -> End:
        """One for a new tunnel."""
        self._taken[credentials] = self._taken.get(credentials, 0) + 1
        made = self._made.get(credentials)
        return made.pop(0) if made else end_of(credentials.client, server=False)

    def prepare(self, credentials: Credentials) -> None:
        """Make some ahead, if they are taken again and again and none is left."""
        if self._taken.get(credentials, 0) > 1 and not self._made.get(credentials):
            count = min(AHEAD, MOST - len(self))
            self._made[credentials] = [end_of(credentials.client, server=False) for _ in range(count)]

    def forget(self, credentials: Credentials | None) -> None:
        """Another certificate, or none, has taken its place."""
        if credentials is not None:
            self._made.pop(credentials, None)
            self._taken.pop(credentials, None)

    def release_idle(self) -> None:
        """Give back those of whom none was taken since the last call."""
        for credentials in self._made.keys() - self._taken.keys():
            del self._made[credentials]
        self._taken.clear()

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Crashing."""
        _log.error("no hello was made ahead: %s", error)
