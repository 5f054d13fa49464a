"""A root is rotated under a running mesh: a real control plane, real issuers, two real workers, and streams that never end."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mesh.proto import control_pb2
from tests.control.conftest import ControlProcess
from tests.ztunnel.world import CLIENT, SERVER, VIP, PodWorld, World, world
from wire.grpc_tls import Endpoint
from ztunnel.ca import CertificateClient
from ztunnel.channel import SetCertificate
from ztunnel.frames import CLIENT_OPENING
from ztunnel.issuer import Issuer
from ztunnel.key_store import KeyStore
from ztunnel.residents import Residents
from ztunnel.tls import Credentials

pytestmark = pytest.mark.kernel

LIFE_S = 10
"""Of a certificate: each is renewed 5 s before its end, which is what a busy machine may stand still for."""
MESH = """
{{apiVersion: v1, kind: Node, metadata: {{name: node-{name}}}, spec: {{podCIDRs: [10.244.{number}.0/24]}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop}}
spec: {{serviceAccountName: {name}, containers: [{{name: main, command: [serve]}}]}}
---
"""


class Supervisor:
    """The half of a proxy that gets certificates for its one pod, with all that it ever got."""

    def __init__(self, pod: PodWorld, control: ControlProcess, folder: Path) -> None:
        node = f"node-{pod.name}"
        token, root = folder / f"{node}.token", folder / f"{node}.pem"
        token.write_text(control.token(node))
        root.write_text(control.root_pem)
        self.pod = pod
        self.issued: list[SetCertificate] = []
        self.failures: list[Any] = []
        self._residents = Residents(node)
        self._client = CertificateClient(
            Endpoint(control.address(), root, token, "Kubernetes", server_name="weft-control"), LIFE_S
        )
        self._issuer = Issuer(self._client, KeyStore("none", node, None), self._residents, self._tell)

    def _tell(self, message: Any) -> None:
        (self.issued if isinstance(message, SetCertificate) else self.failures).append(message)
        self.pod.worker.tell(message)

    async def run(self) -> None:
        self._residents.update([self.pod.workload], [])
        self._issuer.residents_changed()
        try:
            await self._issuer.run()
        finally:
            await self._client.close()

    def valid(self) -> list[SetCertificate]:
        """What others may still show."""
        return [one for one in self.issued if one.expires_unix_s > time.time()]

    def roots(self) -> list[list[x509.Certificate]]:
        """One after the other."""
        bundles = [x509.load_pem_x509_certificates(one.roots_pem) for one in list(self.issued)]
        return [one for one, _ in groupby(bundles)]


@contextmanager
def running(*supervisors: Supervisor) -> Iterator[None]:
    """Run them in a thread of their own, as processes beside the workers would."""
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[None]] = []

    async def together() -> None:
        tasks.extend(loop.create_task(one.run()) for one in supervisors)
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(together(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        thread.join()
        loop.close()


def greet(mesh: World, caller: PodWorld, callee: PodWorld, shown: SetCertificate) -> None:
    """A whole handshake of a certificate against a worker: each end verifies the other, and the worker speaks."""
    with caller.connect(callee.address, 15008, mark=0x539) as raw, Credentials(shown).client.wrap_socket(raw) as tls:
        tls.sendall(CLIENT_OPENING)
        assert tls.recv(9), f"{callee.name} refused {shown.identity}"


def greet_while_valid(mesh: World, caller: PodWorld, callee: PodWorld, shown: SetCertificate) -> None:
    """The same; what has expired by then may be refused, however long before that it began."""
    try:
        greet(mesh, caller, callee, shown)
    except (AssertionError, OSError):
        if shown.expires_unix_s > time.time():
            raise


def exchange(client: socket.socket, server: socket.socket) -> None:
    for one, other in ((client, server), (server, client)):
        one.sendall(b"still here")
        assert other.recv(10, socket.MSG_WAITALL) == b"still here"


@pytest.fixture
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    made = ControlProcess(tmp_path_factory.mktemp("c"))
    made.start()
    yield made
    made.stop()


def test_no_connection_is_dropped_and_none_refused_through_a_whole_rotation(control: ControlProcess, tmp_path: Path) -> None:
    control.apply("".join(MESH.format(name=name, number=number) for number, name in enumerate(("client", "server"), 1)))
    pods = [
        {"namespace": "shop", "name": name, "node": f"node-{name}", "addresses": [f"10.244.{number}.2"]}
        for number, name in enumerate(("client", "server"), 1)
    ]
    control.report(*pods)
    with world("rotation") as mesh:
        for pod in (mesh.client, mesh.server):
            pod.start(mesh.inventory, [])
        ends = [Supervisor(pod, control, tmp_path) for pod in (mesh.client, mesh.server)]
        with running(*ends), mesh.server.listen(8080) as listener:
            standing = [mesh.client.connect(VIP, 80)]
            standing.append(listener.accept()[0])
            while not all(end.issued for end in ends):
                exchange(*standing)
            (old,) = ends[0].roots()[0]
            control.stub.RotateRoot(control_pb2.RotateRootRequest(overlap_s=LIFE_S + 1))
            until = time.monotonic() + 15 * LIFE_S
            while not all(len(end.roots()[-1]) == 1 and old not in end.roots()[-1] for end in ends):
                assert time.monotonic() < until, control.log.read_text()
                exchange(*standing)
                for caller, callee in (ends, ends[::-1]):
                    for shown in caller.valid():
                        greet_while_valid(mesh, caller.pod, callee.pod, shown)
                with mesh.client.connect(VIP, 80) as client:
                    fresh, _ = listener.accept()
                    exchange(client, fresh)
                    fresh.close()
            exchange(*standing)
            for end in ends:
                (new,) = end.roots()[-1]
                assert end.roots() == [[old], [old, new], [new, old], [new]]
            assert not ends[0].failures and not ends[1].failures
            assert ends[0].issued[0].identity == CLIENT and ends[1].issued[0].identity == SERVER
            x509.load_pem_x509_certificate(ends[1].issued[-1].chain_pem).verify_directly_issued_by(new)
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                greet(mesh, mesh.client, mesh.server, ends[0].issued[0])
            for one in standing:
                one.close()
