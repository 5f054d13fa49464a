"""A pod's DNS: names of the mesh are answered from the inventory, all others by the nameservers, asked from inside the pod.

Source: facts of Istio's ztunnel, section 7. Everything that a pod can make grow is bounded: questions under way (of the pod,
of the worker), TCP clients, what they do not read. Beyond a bound a question is answered SERVFAIL, so that resolvers go on.
"""

import logging
import os
import socket
from random import sample

from mesh.workload import Workload
from ztunnel.allowance import Allowance
from ztunnel.dns_client import MAX_CLIENTS, DNSClient, Reply
from ztunnel.dns_counts import Protocol
from ztunnel.dns_datagrams import DNSDatagrams
from ztunnel.dns_message import AAAA, IN, MAX_BYTES, NOERROR, SERVFAIL, A
from ztunnel.dns_query import Query, answer, read_query, refuse, relay
from ztunnel.dns_response import Response
from ztunnel.dns_upstream import MAX_EXCHANGES, Exchange
from ztunnel.ledger import SocketAddress
from ztunnel.listener import Listener
from ztunnel.names import Found, find
from ztunnel.pod import Pod

TTL_S = 30
MAX_ASKING = 128
"""Questions of one pod under way in one worker."""
QUESTIONS_PER_S, _QUESTIONS_AT_ONCE = 2500, 256
"""Of one pod in one worker: a tenth of its time, for names of the mesh. What comes beyond waits in the kernel, as far as there
is room: who asks 20,000 times a second takes neither the workers' time nor, woken by each answer, its neighbours'."""
_MAX_FORWARDED = MAX_EXCHANGES * 3 // 4
"""Of all pods together: what connections themselves must have resolved has the rest."""
_VERSIONS = {A: 4, AAAA: 6}
_log = logging.getLogger("dns")


class DNSService:
    """Owns the pod's DNS sockets, its clients and its questions."""

    def __init__(self, pod: Pod, fds: list[int]) -> None:
        """Takes the descriptors: datagram sockets and listeners. Raises: OSError, and all of them are closed."""
        self.pod = pod
        self._asking: dict[Exchange, None] = {}
        self._waiting: dict[object, None] = {}
        """Questions that came before the control plane told of the pod."""
        self._clients: dict[DNSClient, None] = {}
        """In the order in which they last said something."""
        self._allowance = Allowance(_QUESTIONS_AT_ONCE, QUESTIONS_PER_S)
        self._doors: list[DNSDatagrams | Listener] = []
        self._draining = False
        try:
            self.add(fds)
        except BaseException:
            self.close()
            raise

    def add(self, fds: list[int]) -> None:
        """Take further descriptors. Raises: OSError, and those that were not reached are closed."""
        left = list(fds)
        try:
            while left:
                sock = socket.socket(fileno=left.pop(0))
                if sock.type == socket.SOCK_DGRAM:
                    self._doors.append(DNSDatagrams(self.pod.node.loop, self, sock))
                else:
                    self._doors.append(Listener(self.pod, sock.detach(), self._accept))
        except BaseException:
            for fd in left:
                os.close(fd)
            raise

    def take(self, wire: bytes, protocol: Protocol, reply: Reply) -> bool:
        """Answer one message, once: at once, or when a nameserver has; False: not at all."""
        self._allowance.spend(self.pod.node.loop.now)
        query = read_query(wire)
        if query is None:
            return False
        if query.refusal:
            reply(refuse(query, query.refusal))
        else:
            self._find_out(query, protocol, reply)
        return True

    def _find_out(self, query: Query, protocol: Protocol, reply: Reply) -> None:
        client = self.pod.workload()
        if client is not None:
            self._resolve(client, query, protocol, reply)
        elif len(self._waiting) < MAX_ASKING:
            self._wait(query, protocol, reply)
        else:
            reply(refuse(query, SERVFAIL))

    def has_time(self) -> bool:
        """See ztunnel.dns_client.Server."""
        return self._allowance.spend(self.pod.node.loop.now, 0.0)

    def _wait(self, query: Query, protocol: Protocol, reply: Reply) -> None:
        who = object()
        self._waiting[who] = None

        def attempt() -> bool:
            client = self.pod.workload()
            if client is not None:
                self._waiting.pop(who, None)
                self._resolve(client, query, protocol, reply)
                self._close_when_done()
            return client is not None

        def give_up() -> None:
            self._waiting.pop(who, None)
            self._count(None, query, protocol)
            self._log(None, query, "unknown source")
            reply(refuse(query, SERVFAIL))
            self._close_when_done()

        self.pod.node.when_known(who, attempt, give_up)

    def _resolve(self, client: Workload, query: Query, protocol: Protocol, reply: Reply) -> None:
        node, question = self.pod.node, query.question
        assert question is not None
        self._count(client, query, protocol)
        version = _VERSIONS.get(question.type) if question.klass == IN else None
        found = find(node.inventory, node.zone, client, question.name, version) if version else None
        if found is None:
            self._forward(client, query, protocol, reply)
        else:
            self._log(client, query, "success" if found.addresses else "no records", len(found.addresses))
            reply(_authoritative(query, found, protocol))

    def _forward(self, client: Workload, query: Query, protocol: Protocol, reply: Reply) -> None:
        node, question = self.pod.node, query.question
        assert question is not None
        counts = node.dns_counts.of(client, question, protocol)
        counts.upstream_requests += 1
        began = node.loop.now

        def done(response: Response | None, reason: str) -> None:
            if exchange is not None:
                self._asking.pop(exchange, None)
            counts = node.dns_counts.of(client, question, protocol)
            counts.took(node.loop.now - began)
            if response is None or response.code != NOERROR or not response.answers:  # as Istio counts
                counts.upstream_failures += 1
            if response is None:
                self._log(client, query, f"forwarding failed ({reason})")
                reply(refuse(query, SERVFAIL))
            else:
                self._log(client, query, "forwarded", len(response.answers))
                reply(relay(query, response, query.udp_limit if protocol == "udp" else MAX_BYTES))
            self._close_when_done()

        upstream = node.dns_upstream
        full = len(self._asking) >= MAX_ASKING or len(upstream.under_way) >= _MAX_FORWARDED
        exchange = None if full else upstream.ask(self.pod.netns, question, done, query.wishes)
        if exchange is None:
            counts.upstream_failures += 1
            node.dns_refused += 1
            self._log(client, query, "forwarding failed (too many questions under way)")
            reply(refuse(query, SERVFAIL))
        else:
            self._asking[exchange] = None

    def _count(self, client: Workload | None, query: Query, protocol: Protocol) -> None:
        assert query.question is not None
        self.pod.node.dns_counts.of(client, query.question, protocol).requests += 1

    def _log(self, client: Workload | None, query: Query, result: str, endpoints: int = 0) -> None:
        if _log.isEnabledFor(logging.DEBUG) and query.question is not None:
            name, namespace = (client.name, client.namespace) if client else ("unknown", "unknown")
            _log.debug(
                'src.workload="%s" src.namespace="%s" query=%s domain="%s" result="%s" endpoints=%d',
                *(name, namespace, query.question.type_name, query.question.name, result, endpoints),
            )

    # --- TCP clients

    def _accept(self, _pod: Pod, sock: socket.socket, _peer: SocketAddress) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).close()
        client = DNSClient(self.pod.node, self, sock)
        self._clients[client] = None

    def heard(self, client: DNSClient) -> None:
        """A client said something: it is the last to be closed for room."""
        if client in self._clients:
            self._clients[client] = self._clients.pop(client)

    def gone(self, client: DNSClient) -> None:
        """It closed."""
        self._clients.pop(client, None)

    # --- its end

    def drain(self) -> None:
        """Answer what has arrived and take nothing more.

        While nameservers are being asked, datagrams are answered as before: their socket stays open for the answers, and what
        the kernel gives it would otherwise be lost, although a successor listens beside it.
        """
        self._draining = True
        for door in self._doors:
            if isinstance(door, Listener):
                door.drain()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if not self._draining or self._asking or self._waiting:
            return
        datagrams = [door for door in self._doors if isinstance(door, DNSDatagrams)]
        for door in datagrams:
            door.take_rest()
        if not self._asking and not self._waiting:
            for door in datagrams:
                door.close()

    def close(self) -> None:
        """End everything now."""
        for door in self._doors:
            door.close()
        for client in list(self._clients):
            client.close()
        for exchange in list(self._asking):
            exchange.cancel()
        self._asking.clear()
        for who in list(self._waiting):
            self.pod.node.forget_waiter(who)
        self._waiting.clear()


def _authoritative(query: Query, found: Found, protocol: Protocol) -> bytes:
    assert query.question is not None
    limit = query.udp_limit if protocol == "udp" else MAX_BYTES
    shuffled = sample(found.addresses, len(found.addresses))
    return answer(query, query.question.name, found.alias if shuffled else "", shuffled, TTL_S, limit)
