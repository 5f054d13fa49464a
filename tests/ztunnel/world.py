"""A small world for the data worker: two pods in their own network namespaces, one real worker process for each, real TLS.

The redirect is nftables in the pods' namespaces, as Istio's CNI makes it: the worker cannot tell the difference.
"""

import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import Identity
from mesh.policy import Policy
from mesh.workload import NetworkAddress, Service, TunnelProtocol, Workload
from wire.netns import entered, open_home
from ztunnel.channel import (
    HBONE,
    PORTS,
    SOCKS,
    AddPod,
    Closed,
    Configure,
    Connections,
    EarlyFailure,
    PodAdded,
    QueryConnections,
    SetCertificate,
    UpdateInventory,
    UpdatePolicies,
)
from ztunnel.connection_record import ConnectionRecord
from ztunnel.dns_config import dns_places
from ztunnel.framing import FrameReader, FrameWriter, receive
from ztunnel.openssl_conf import openssl_conf
from ztunnel.pod_sockets import Openings, open_pod_sockets
from ztunnel.workers import keep_in_memory

ROOT = Path(__file__).parents[2]
VIP = "10.199.0.1"
CLIENT, SERVER = Identity("cluster.local", "shop", "client"), Identity("cluster.local", "shop", "server")
PROGRAM = ("-m", "ztunnel.worker")


def patched(*lines: str) -> tuple[str, str]:
    """What a worker runs instead, where lines that change its modules come first, before what takes their names."""
    return "-c", "\n".join(("import sys", *lines, "from ztunnel import worker", "worker.main(sys.argv[1:])"))


_LISTENING = "0A"
"""A state in /proc/net/tcp."""
_T = TypeVar("_T")

_RULES = """
table inet capture {{
    chain mark_in {{
        type filter hook prerouting priority mangle;
        meta mark & 0xfff == 0x539 ct mark set 0x111
    }}
    chain mark_out {{
        type route hook output priority mangle;
        ct mark 0x111 meta mark set 0x111
    }}
    chain inbound {{
        type nat hook prerouting priority dstnat;
        iifname != "lo" tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
    }}
    chain outbound {{
        type nat hook output priority -100;
        ct mark 0x111 accept
        oifname != "lo" meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
    }}
}}
"""


class Authority:
    """A CA that signs what it is told to."""

    def __init__(self, name: str | x509.Name = "test root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) if isinstance(name, str) else name
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *uris: str, expired: bool = False, usages: list[Any] | None = None) -> tuple[bytes, bytes]:
        """Chain and key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        until = now - timedelta(hours=1) if expired else now + timedelta(hours=24)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(until)
            .add_extension(
                x509.ExtendedKeyUsage(usages or [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=True)
        certificate = builder.sign(self.key, hashes.SHA256())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return certificate.public_bytes(serialization.Encoding.PEM), pem

    def certificate_for(self, identity: Identity, *uris: str, expired: bool = False, roots: bytes = b"") -> SetCertificate:
        """What a supervisor would send for an identity; `uris` replaces the honest name."""
        chain, key = self.issue(*(uris or (str(identity),)), expired=expired)
        return SetCertificate(identity, chain, key, roots or self.pem, time.time() + 3600)


class WorkerProcess:
    """A worker, seen from its supervisor."""

    def __init__(self, log: Path | None = None, program: Sequence[str] = PROGRAM) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        conf = keep_in_memory("openssl.cnf", openssl_conf(ssl.OPENSSL_VERSION_INFO, pqc=False))
        environment = os.environ | {"OPENSSL_CONF": f"/proc/self/fd/{conf}"}
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None
        self.process = subprocess.Popen(
            [sys.executable, *program, "--channel", str(theirs.fileno())],
            pass_fds=[theirs.fileno(), conf],
            cwd=ROOT,
            env=environment,
            stderr=stderr,
        )
        if stderr is not None:
            os.close(stderr)
        theirs.close()
        os.close(conf)
        self._reader, self._writer = FrameReader(), FrameWriter()
        self.heard: list[Any] = []
        self.captured: Callable[[], int] = lambda: 0
        """See `PodWorld.captured`."""

    def tell(self, message: object, fds: list[int] | None = None) -> None:
        self.sock.settimeout(40)  # not as long as was last listened for
        self._writer.push(message, fds or [])
        self._writer.flush(self.sock)

    def listen(self, timeout_s: float) -> None:
        """Take in what the worker says within a moment."""
        self.sock.settimeout(timeout_s)
        try:
            data, fds = receive(self.sock)
        except (TimeoutError, BlockingIOError):
            return
        if not data:
            raise EOFError(f"worker ended with {self.process.wait(40)}")
        self.heard += [message for message, _ in self._reader.feed(data, fds)]

    def wait_for(self, kind: type[_T], accept: Callable[[_T], bool] = lambda _: True, timeout_s: float = 40) -> _T:
        """The first message of a kind that is accepted, of those said before too; it is taken away."""
        until = time.monotonic() + timeout_s
        looked_at = 0
        while True:
            for place in range(looked_at, len(self.heard)):
                message = self.heard[place]
                if isinstance(message, kind) and accept(message):
                    del self.heard[place]
                    return message
            looked_at = len(self.heard)
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no {kind.__name__}; heard {self.heard[-20:]}")
            self.listen(left)

    def catch_up(self) -> list[ConnectionRecord]:
        """What is open once it has taken in all that it was told; what it said before is heard by then."""
        self.tell(QueryConnections(-1))
        parts: list[Connections] = []
        while not parts or parts[-1].unfinished:
            parts.append(self.wait_for(Connections, lambda answer: answer.number == -1))
        return [record for part in parts for record in part.records]

    def settle(self) -> None:
        """Wait until nothing is open any more, and forget all that was said.

        Three times nothing: what the kernel has taken is not open yet, but is when the loop has turned once more.
        """
        until, nothing = time.monotonic() + 40, 0
        while nothing < 3:
            nothing = 0 if self.catch_up() or self.captured() else nothing + 1
            assert time.monotonic() < until, "connections stay open"
        self.heard.clear()

    def closed(self, accept: Callable[[ConnectionRecord], bool] = lambda _: True) -> ConnectionRecord:
        """The record of the next connection that ends."""
        return self.wait_for(Closed, lambda message: accept(message.record)).record

    def early(self, text: str) -> EarlyFailure:
        """The next early failure with these words."""
        return self.wait_for(EarlyFailure, lambda failure: text in failure.error)

    def memory_kib(self, what: str = "Pss") -> int:
        """Proportional set size."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1])
        raise LookupError(what)

    def stop(self) -> None:
        self.sock.close()
        try:
            self.process.wait(40)
        finally:
            self.process.kill()


class PodWorld:
    """A pod's namespace and its worker."""

    def __init__(self, name: str, number: int, prefix: str, home_fd: int, protocol: TunnelProtocol) -> None:
        self.name = name
        self.netns = f"{prefix}-{name}"
        self.address = f"10.198.0.{number}"
        self.address6 = f"fd98::{number}"
        self.home_fd = home_fd
        self.identity = Identity("cluster.local", "shop", name)
        self.workload = Workload(
            f"Kubernetes//Pod/shop/{name}",
            name,
            "shop",
            (ip_address(self.address), ip_address(self.address6)),
            protocol=protocol,
            service_account=name,
            node=f"node-{name}",
            canonical_name=name,
            canonical_revision="v1",
            workload_name=name,
        )
        self.network = ""
        """The name of the network that its proxy is told."""
        run("ip", "netns", "add", self.netns)
        self.fd = os.open(f"/run/netns/{self.netns}", os.O_RDONLY | os.O_CLOEXEC)
        self.worker: WorkerProcess
        self.configuration: dict[str, Any] = {}
        """What differs from the defaults."""
        self.sockets: list[socket.socket] = []
        self.resolv_conf = "/dev/null"
        self.log: Path | None = None
        """Where its worker writes its log; None: where the test does."""
        self.program: Sequence[str] = PROGRAM
        """What its worker runs."""

    def wire_up(self, device: str, redirect: bool = True) -> None:
        run("ip", "-n", self.netns, "link", "set", "lo", "up")
        run("ip", "-n", self.netns, "addr", "add", f"{self.address}/24", "dev", device)
        run("ip", "-n", self.netns, "addr", "add", f"{self.address6}/64", "dev", device, "nodad")
        run("ip", "-n", self.netns, "link", "set", device, "up")
        run("ip", "-n", self.netns, "route", "add", "default", "dev", device)
        if redirect:
            run("ip", "netns", "exec", self.netns, "nft", "-f", "-", text=_RULES.format())
            for family in ("-4", "-6"):
                run("ip", family, "-n", self.netns, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100")
                run("ip", family, "-n", self.netns, "route", "add", "local", "default", "dev", "lo", "table", "100")

    def start(
        self, workloads: list[Workload | Service], certificates: list[SetCertificate], policies: tuple[Policy, ...] = ()
    ) -> None:
        """Start the worker and give it this pod."""
        self.worker = WorkerProcess(self.log, self.program)
        self.worker.captured = self.captured
        node, network = f"node-{self.name}", self.network
        configure = Configure(
            node, network, "Kubernetes", "cluster.local", 0, resolv_conf=self.resolv_conf, offender_pause_s=0.0
        )
        self.worker.tell(configure._replace(**self.configuration))
        self.worker.tell(UpdateInventory(workloads, []))
        self.worker.tell(UpdatePolicies(list(policies), []))
        for certificate in certificates:
            self.worker.tell(certificate)
        self.add_pod()

    def captured(self) -> int:
        """How many connections its worker has taken in and not ended; it does not tell of those that have yet to open."""
        with entered(self.fd, self.home_fd):
            tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
        table = [line.split() for one in tables for line in one.splitlines()]
        ours = [f":{port:04X}" for port in (*PORTS, SOCKS) if port != HBONE]
        return sum(line[1][-5:] in ours and line[3] != _LISTENING and line[9] != "0" for line in table)

    def add_pod(self) -> None:
        sockets = open_pod_sockets(self.fd, self.home_fd, Openings(0x539, dns_places({}, ipv6=True)))
        assert not sockets.dns_trouble
        self.worker.tell(AddPod(self.name, "shop", self.name, self.name), sockets.fds())
        sockets.close()
        assert self.worker.wait_for(PodAdded).error == ""

    def make_socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket of an application in the pod."""
        with entered(self.fd, self.home_fd):
            sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(40)
        self.sockets.append(sock)
        return sock

    def reset_sockets(self) -> None:
        """End what a test that failed left open, so that the next one does not fail for it."""
        for sock in self.sockets:
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        self.sockets.clear()

    def listen(self, port: int, family: int = socket.AF_INET, address: str = "") -> socket.socket:
        """An application that listens, at all addresses unless one is given."""
        sock = self.make_socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
        sock.listen(1024)
        return sock

    def connect(self, address: str, port: int, mark: int = 0) -> socket.socket:
        """An application that connects; the proxy's mark takes it past the redirect, as an attacker with NET_RAW may."""
        sock = self.make_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            sock.connect((address, port))
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        self.reset_sockets()
        if hasattr(self, "worker"):
            self.worker.stop()
        os.close(self.fd)
        run("ip", "netns", "del", self.netns)


class World:
    """Pods, each on a node of its own: a client, a server, and others by name."""

    def __init__(self, name: str, *others: str) -> None:
        assert shutil.which("nft"), "nftables is needed: apt-get install nftables"
        self.prefix = f"{os.environ.get('WEFT_PREFIX', 'weft')}-test-{os.getpid()}-{name}"
        self.home_fd = open_home()
        self.authority = Authority()
        self.pods = {
            one: PodWorld(one, number, self.prefix, self.home_fd, TunnelProtocol.HBONE)
            for number, one in enumerate(("client", "server", *others), 1)
        }
        self.client, self.server = self.pods["client"], self.pods["server"]
        self._switch = ""
        self._link()
        key = "shop/web.shop.svc.cluster.local"
        self.service = Service("web", "shop", "web.shop.svc.cluster.local", (NetworkAddress("", ip_address(VIP)),), {80: 8080})
        self.server.workload = replace(self.server.workload, services={key: {80: 8080}})

    def _link(self) -> None:
        """One cable between two pods; for more a bridge in a namespace of its own, where no pod's rules apply to its frames."""
        client, first, *rest = self.pods.values()
        if not rest:
            run("ip", "-n", client.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", first.netns)
        else:
            self._switch = f"{self.prefix}-switch"
            run("ip", "netns", "add", self._switch)
            run("ip", "-n", self._switch, "link", "add", "br0", "up", "type", "bridge")
            for pod in self.pods.values():
                port = f"to-{pod.name}"
                run("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pod.netns)
                run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        for pod in self.pods.values():
            pod.wire_up("eth0")

    @property
    def inventory(self) -> list[Workload | Service]:
        return [self.client.workload, self.server.workload, self.service]

    def start(self, client: SetCertificate | None = None, server: SetCertificate | None = None) -> None:
        """Start both workers, with honest certificates unless others are given."""
        self.client.start(self.inventory, [client or self.authority.certificate_for(CLIENT)])
        self.server.start(self.inventory, [server or self.authority.certificate_for(SERVER)])

    def settle(self) -> None:
        """`Worker.settle` of every pod: nothing is open any more, and what was said is forgotten."""
        for pod in self.pods.values():
            pod.worker.settle()

    def reset_sockets(self) -> None:
        """`PodWorld.reset_sockets` of every pod."""
        for pod in self.pods.values():
            pod.reset_sockets()

    def close(self) -> None:
        for pod in self.pods.values():
            pod.close()
        if self._switch:
            run("ip", "netns", "del", self._switch)
        os.close(self.home_fd)


@contextmanager
def world(name: str, *others: str) -> Iterator[World]:
    """A world that leaves nothing behind."""
    made = World(name, *others)
    try:
        yield made
    finally:
        made.close()


def assert_reset(connect: Callable[[], socket.socket]) -> None:
    """The connection is reset: while it is made, or when it is read."""
    try:
        with connect() as sock:
            data = sock.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"not reset, but {data!r}")


def run(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
