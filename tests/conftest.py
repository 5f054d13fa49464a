"""What tests of several folders stand on: a certificate authority of their own, a way to wait, and whether peers are there."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, settings

# The same inputs each time, however long a busy machine takes over one: what is new is looked for by `make fuzz`.
settings.register_profile("weft", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("weft")

# In the background of a shell, or under nohup, these are ignored, and each program that a test starts would inherit that.
# No program inherits a handler.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

PEER = "ZTUNNEL_BIN"
"""Names Istio's own ztunnel binary, beside which tests marked `peer` stand."""
_left_out = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that need another implementation out where none is named; the last lines say so."""
    if os.environ.get(PEER):
        return
    peers = [item for item in items if item.get_closest_marker("peer")]
    if peers:
        config.stash[_left_out] = len(peers)
        config.hook.pytest_deselected(items=peers)
        items[:] = [item for item in items if not item.get_closest_marker("peer")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have what is imported from now on taken as it is; all tests are there, and their assertions rewritten.

    Hypothesis has modules that it imports in the midst of tests. pytest would parse them for that, too, and CPython 3.11's
    parser fails with a SystemError where the collector runs in it at a wrong moment (CPython's issue 106905).
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not session.config.pluginmanager.rewrite_hook]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what did not run, and how to have it run."""
    if count := config.stash.get(_left_out, 0):
        terminalreporter.write_line(
            f"peer tests: {count} not run: {PEER} names no ztunnel binary (with one: make peer {PEER}=PATH)", yellow=True
        )


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged from now on; what asyncio says of others' garbage, when the collector comes to it, is said before."""
    gc.collect()
    caplog.clear()
    return caplog


class Authority:
    """A root of trust that signs whatever a test asks for."""

    def __init__(self, name: str = "test root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._root = self._build(self.name, self.key.public_key(), timedelta(days=1)).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.root_pem = self._root.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, ttl: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        return (
            builder.serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=2))
            .not_valid_after(now + ttl)
        )

    def server(self, *names: str) -> tuple[bytes, bytes]:
        """Key and certificate, PEM, of a server under DNS names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        builder = self._build(x509.Name([]), key.public_key(), timedelta(days=1)).add_extension(
            x509.SubjectAlternativeName(alternatives), critical=True
        )
        return key_pem(key), builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def workload(self, public_key: ec.EllipticCurvePublicKey, *uris: str, ttl: timedelta = timedelta(days=1)) -> bytes:
        """A workload's certificate, PEM."""
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = self._build(x509.Name([]), public_key, ttl).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS#8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(scope="session")
def authority() -> Authority:
    """One root of trust for the whole run."""
    return Authority()


@pytest.fixture(scope="session")
def other_authority() -> Authority:
    """A root that nobody should trust."""
    return Authority("foreign root")


async def _eventually(condition: Callable[[], object], timeout_s: float = 100.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  whatever a test waits for, it has no event of its own
            await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[None]]:
    """`await eventually(condition)`: go on as soon as it holds; TimeoutError after 100 s."""
    return _eventually
