"""`make soak`: connections while the mesh, policies, certificates and the pod itself come and go, in random order.

Each seed is one story of two pods with real proxies between them. After each change both proxies have taken it in before the
next thing happens, so that it is known what was true between a connection's beginning and its delivery. What must hold:

- whoever knows of a waypoint that is not there sends nothing past it, and who knew whom it dialled nothing in plain;
- nothing is delivered that a policy forbade at all times;
- whoever waits for a certificate is judged by what is true when it comes;
- in the end nothing is left open.
"""

import argparse
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from mesh.policy import Action, Policy, Scope
from mesh.workload import GatewayAddress, NamespacedHostname
from tests.ztunnel.world import CLIENT, SERVER, VIP, World, world
from ztunnel.channel import (
    Closed,
    ForgetCertificate,
    Opened,
    RemovePod,
    UpdateInventory,
    UpdatePolicies,
)
from ztunnel.connection_record import ConnectionRecord

_STEPS = 120
_FIRST_PORT = 20_000
"""None that the kernel gives out."""
_NOWHERE = GatewayAddress(NamespacedHostname("shop", "gone.shop.svc.cluster.local"), 15008)
_DENIAL = Policy("shop", "nobody", Scope.NAMESPACE, Action.DENY, ((),))
View = Literal["known", "gated", "unknown"]
"""What the client's proxy knows of the server: it, that it is behind a waypoint which is not there, nothing."""


@dataclass(frozen=True, slots=True)
class _State:
    """What is true for a while."""

    view: View
    denied: bool
    certified: bool
    """The client's proxy has its certificate."""


@dataclass(slots=True)
class _Try:
    """One connection, whose bytes are its number."""

    sock: socket.socket
    port: int
    """Its own."""
    began: int
    """The state in which it did."""
    delivered: int | None = None
    """The state in which its bytes were read."""


class Story:
    """One seed's."""

    def __init__(self, seed: int, mesh: World) -> None:
        self._random = Random(seed)
        self._mesh = mesh
        self._states = [_State("known", denied=False, certified=True)]
        self._tries: list[_Try] = []
        self._accepted: list[socket.socket] = []
        self._listener = mesh.server.listen(8080)
        self._listener.setblocking(False)
        self._dialled = 0
        self._records: dict[int, ConnectionRecord] = {}
        """The newest of each connection of the client, by its port."""

    def run(self) -> None:
        """Raises: AssertionError where something does not hold."""
        steps: list[tuple[int, Callable[[], None]]] = [
            (14, self._connect),
            (6, self._look),
            (2, self._deny),
            (6, self._certify),
            (1, self._come_and_go),
            (1, lambda: time.sleep(0.02)),
        ]
        everything, weights = [step for _, step in steps], [weight for weight, _ in steps]
        for _ in range(_STEPS):
            self._random.choices(everything, weights)[0]()
            self._hear()
        self._end()
        for number in range(len(self._tries)):
            self._judge(number)

    # --- what happens

    def _tell(self, changes: list[Any], at: str = "client server") -> None:
        """Both proxies take it in before anything else happens."""
        for name in at.split():
            worker = self._mesh.pods[name].worker
            for change in changes:
                worker.tell(change)
            worker.catch_up()

    def _now(self, **changes: Any) -> None:
        self._states.append(replace(self._states[-1], **changes))

    def _connect(self) -> None:
        where = self._random.choice(((VIP, 80), (self._mesh.server.address, 8080)))
        sock, port = self._mesh.client.make_socket(), _FIRST_PORT + self._dialled  # of none before: records are known by it
        self._dialled += 1
        sock.bind((self._mesh.client.address, port))
        try:
            sock.connect(where)
        except ConnectionResetError:
            sock.close()
            return  # refused before anything was sent
        self._tries.append(_Try(sock, port, len(self._states) - 1))
        with suppress(OSError):
            sock.sendall(struct.pack("!I", len(self._tries) - 1))
        self._tell([], "client")  # its proxy takes one connection a turn: none is left for a later state

    def _look(self) -> None:
        """The client's proxy learns something of the server."""
        view: View = self._random.choice(("known", "known", "gated", "unknown"))
        service, workload = self._mesh.service, self._mesh.server.workload
        if view == "gated":
            service, workload = (replace(one, waypoint=_NOWHERE) for one in (service, workload))  # type: ignore[type-var]
        update = (
            UpdateInventory([], [service.key, workload.uid]) if view == "unknown" else UpdateInventory([service, workload], [])
        )
        self._tell([update], "client")
        self._now(view=view)

    def _deny(self) -> None:
        denied = not self._states[-1].denied
        self._tell([UpdatePolicies([_DENIAL], []) if denied else UpdatePolicies([], [_DENIAL.key])], "server")
        self._now(denied=denied)

    def _certify(self) -> None:
        if self._random.random() < 0.3:
            self._tell([ForgetCertificate(SERVER), self._mesh.authority.certificate_for(SERVER)], "server")
            return
        certified = not self._states[-1].certified
        paper = self._mesh.authority.certificate_for(CLIENT) if certified else ForgetCertificate(CLIENT)
        self._tell([paper], "client")
        self._now(certified=certified)

    def _come_and_go(self) -> None:
        """The server's pod, its worker, or its entry in the mesh, goes and comes back."""
        server, what = self._mesh.server, self._random.random()
        if what < 0.2:
            server.worker.stop()
            denials = (_DENIAL,) if self._states[-1].denied else ()
            server.start(self._mesh.inventory, [self._mesh.authority.certificate_for(SERVER)], denials)
        elif what < 0.6:
            self._tell([UpdateInventory([replace(server.workload, node="elsewhere")], [])], "server")
            self._tell([UpdateInventory([server.workload], [])], "server")
        else:
            self._tell([RemovePod(server.name)], "server")
            server.add_pod()

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                self._accepted.append(sock)
        for sock in self._accepted[:]:
            with suppress(BlockingIOError):
                try:
                    data = sock.recv(100)
                except ConnectionResetError:
                    data = b""
                if data:
                    assert len(data) == 4, data
                    self._tries[struct.unpack("!I", data)[0]].delivered = len(self._states) - 1
                self._accepted.remove(sock)
                sock.close()
        self._take_records()

    def _take_records(self) -> None:
        for message in self._mesh.client.worker.heard:
            if isinstance(message, (Opened, Closed)):
                self._records[message.record.source[1]] = message.record

    def _end(self) -> None:
        """Let everything that may still go on go on; then nothing is left."""
        if not self._states[-1].certified:
            self._tell([self._mesh.authority.certificate_for(CLIENT)], "client")
            self._now(certified=True)
        until = time.monotonic() + 40
        while True:
            self._hear()
            self._mesh.client.worker.listen(0.02)
            if all(one.delivered is not None or _is_over(one.sock) for one in self._tries):
                break
            assert time.monotonic() < until, "a connection neither comes through nor ends"
        self._hear()
        for one in (*(one.sock for one in self._tries), *self._accepted, self._listener):
            one.close()
        until = time.monotonic() + 40
        while any(one.delivered is not None and one.port not in self._records for one in self._tries):
            assert time.monotonic() < until, "a connection that was delivered is not told of"
            self._mesh.client.worker.listen(0.02)
            self._take_records()

    # --- what must hold

    def _judge(self, number: int) -> None:
        one = self._tries[number]
        record = self._records.get(one.port)
        began = self._states[one.began : one.began + 2]  # it may have been routed a moment later
        if record is not None and record.protocol == "TCP" and (record.bytes_sent or one.delivered is not None):
            assert any(state.view == "unknown" for state in began), f"connection {number} went in plain to who was known"
        if one.delivered is None:
            return
        between = self._states[one.began : one.delivered + 1]
        assert not all(state.denied for state in between), f"connection {number} was delivered though it was denied"
        if record is not None and record.protocol == "HBONE":
            waited = next((place for place, state in enumerate(between) if state.certified), None)
            assert waited is not None, f"connection {number} was delivered without a certificate"
            assert record.source_identity == CLIENT and record.destination_identity == SERVER
            assert any(state.view != "gated" for state in between[waited:]), f"connection {number} went past a waypoint"
        assert not all(state.view == "gated" for state in between), f"connection {number} went past a waypoint"


def _is_over(sock: socket.socket) -> bool:
    """Whether an application's connection was ended by its proxy."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def main() -> None:
    """One story after the other, until the time is over; the first seed that fails is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    until, seed = time.monotonic() + options.seconds, options.seed
    while time.monotonic() < until:
        print(f"seed {seed}", flush=True)
        with world(f"changes-{seed}") as mesh:
            mesh.start()
            Story(seed, mesh).run()
        seed += 1


if __name__ == "__main__":
    main()
