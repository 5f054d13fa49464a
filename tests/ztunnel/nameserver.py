"""A small real nameserver for tests, built on dnspython: what it is told to know, over UDP and TCP."""

import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Behaviour = Callable[[dns.message.Message, str], list[bytes]]
"""(query, "udp" or "tcp") -> datagrams; nothing: silence."""


class Nameserver:
    """Answers until closed. `asked` holds the queries, with how each came."""

    def __init__(self, behave: Behaviour, address: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._behave = behave
        self.asked: list[tuple[str, dns.message.Message]] = []
        self.sources: list[tuple[str, int]] = []
        self._tcp, self._udp = _bound(address, port, family)
        self.port: int = self._tcp.getsockname()[1]
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (self._udp, self._tcp, self._wake):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        return
                    if key.fileobj is self._udp:
                        data, peer = self._udp.recvfrom(65536)
                        self.sources.append(peer[:2])
                        for answer in self._answers(data, "udp"):
                            self._udp.sendto(answer, peer)
                    else:
                        with suppress(OSError):  # who asked has gone meanwhile
                            self._serve_stream()

    def _serve_stream(self) -> None:
        sock, _ = self._tcp.accept()
        with sock:
            sock.settimeout(40)
            reader = sock.makefile("rb")
            size = reader.read(2)
            if len(size) == 2:
                for answer in self._answers(reader.read(struct.unpack("!H", size)[0]), "tcp"):
                    sock.sendall(struct.pack("!H", len(answer)) + answer)

    def _answers(self, data: bytes, how: str) -> list[bytes]:
        query = dns.message.from_wire(data)
        self.asked.append((how, query))
        return self._behave(query, how)

    def names(self) -> list[str]:
        """What was asked, as `NAME TYPE HOW`."""
        return [
            f"{query.question[0].to_text().split()[0]} {query.question[0].to_text().split()[2]} {how}"
            for how, query in self.asked
        ]

    def close(self) -> None:
        self._stop.close()
        self._thread.join(60)
        for sock in (self._udp, self._tcp, self._wake):
            sock.close()


def _bound(address: str, port: int, family: int) -> tuple[socket.socket, socket.socket]:
    """TCP and UDP on one port; where any will do, one that neither has taken."""
    while True:
        tcp, udp = socket.create_server((address, port), family=family), socket.socket(family, socket.SOCK_DGRAM)
        try:
            udp.bind((address, tcp.getsockname()[1]))
        except OSError:
            tcp.close()
            udp.close()
            if port:
                raise
        else:
            return tcp, udp


def zone(records: Mapping[str, list[str]], max_udp_bytes: int = 65535) -> Behaviour:
    """Know `name.` -> ["TTL TYPE DATA", ...]; other names, aliases' too, do not exist; what is too long for UDP is cut."""

    def behave(query: dns.message.Message, how: str) -> list[bytes]:
        answer = dns.message.make_response(query, recursion_available=True)
        asked = query.question[0]
        _add(answer, records, asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype))
        wire = answer.to_wire(max_size=65535)
        if how == "udp" and len(wire) > max_udp_bytes:
            answer.answer.clear()
            answer.flags |= dns.flags.TC
            wire = answer.to_wire(max_size=65535)
        return [wire]

    return behave


def _add(answer: dns.message.Message, records: Mapping[str, list[str]], name: str, kind: str) -> None:
    if name.lower() not in records:
        answer.set_rcode(dns.rcode.NXDOMAIN)
    for record in records.get(name.lower(), []):
        ttl, got, data = record.split(maxsplit=2)
        if got in (kind, "CNAME"):
            answer.answer.append(dns.rrset.from_text(name, int(ttl), "IN", got, data))
        if got == "CNAME" and len(answer.answer) < 8:
            _add(answer, records, data, kind)


def code(number: int) -> Behaviour:
    """Refuse everything with a response code."""

    def behave(query: dns.message.Message, _how: str) -> list[bytes]:
        answer = dns.message.make_response(query)
        answer.set_rcode(number)  # type: ignore[arg-type]
        return [answer.to_wire()]

    return behave


def silence(_query: dns.message.Message, _how: str) -> list[bytes]:
    """Say nothing."""
    return []


@contextmanager
def nameserver(behave: Behaviour, address: str = "127.0.0.1", port: int = 0) -> Iterator[Nameserver]:
    """A server for the length of a block."""
    server = Nameserver(behave, address, port)
    try:
        yield server
    finally:
        server.close()
