"""gRPC channels to the control plane: TLS with a pinned root, and the credentials that go with every call.

Root and token usually are files that somebody renews: they are read again for every channel or call, never kept.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc.aio

MAX_MESSAGE_BYTES = 200 << 20
MAX_ROOT_BYTES = 4 << 20
_PEM = b"-----BEGIN CERTIFICATE-----"
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
_RECONNECT_MS, _CONNECT_MS = 100, 5_000
"""Between two connection attempts, and for one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service of the control plane is, and how to trust it and be trusted.

    `server_name` is the name in its certificate where that is not the host of `address`; either will do.
    """

    address: str
    """`host:port`."""
    root: Path | bytes | None
    """Whom to trust: a file of PEM, PEM itself, or (None) whom this machine trusts."""
    token: Path | str | None = field(repr=False)
    """Bearer token: a file, the token itself, or none."""
    cluster_id: str
    server_name: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further metadata of every call."""
    client_folder: Path | None = None
    """Where `key.pem` and `cert-chain.pem` lie that we show the server: a certificate stands for a token, or goes with one."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of the next call. Raises: OSError or ValueError when the token cannot be read."""
        rows = [*self.headers.items()]
        if self._sends_token():
            rows.append(("authorization", f"Bearer {self._read_token()}"))
        rows.append(("clusterid", self.cluster_id))
        return tuple(rows)

    def _sends_token(self) -> bool:
        if isinstance(self.token, Path):
            return self.client_folder is None or self.token.exists()
        return self.token is not None

    def _read_token(self) -> str:
        is_file = isinstance(self.token, Path)
        found = _read(self.token, "the node's token").decode(errors="replace") if isinstance(self.token, Path) else self.token
        token = (found or "").strip()
        if not token or not token.isascii() or not token.isprintable():
            where = f"{self.token}: holds no token" if is_file else "AUTH_TOKEN is neither a file nor a token"
            raise ValueError(f"{where}: write the node's token into it")
        return token

    def root_pem(self) -> bytes:
        """The root certificates as they are now. Raises: OSError or ValueError when they cannot be read."""
        if isinstance(self.root, bytes):
            return self.root
        path = self.root or _system_roots()
        pem = _read(path, "control's root certificate")
        if len(pem) > MAX_ROOT_BYTES:
            raise ValueError(f"{path}: more than {MAX_ROOT_BYTES >> 20} MiB: leave only roots of control planes in it")
        if _PEM not in pem:
            raise ValueError(f"{path}: holds no PEM certificate: write control's root certificate into it")
        return pem

    def client_pair(self) -> tuple[bytes, bytes] | None:
        """Our key and its chain as they are now, PEM; None where we show none. Raises: OSError or ValueError."""
        if self.client_folder is None:
            return None
        key_path, chain_path = self.client_folder / "key.pem", self.client_folder / "cert-chain.pem"
        key, chain = _read(key_path, "this node's key"), _read(chain_path, "this node's certificates")
        for path, pem, kind in ((key_path, key, b"PRIVATE KEY"), (chain_path, chain, b"CERTIFICATE")):
            if kind + b"-----" not in pem:
                raise ValueError(f"{path}: holds no {kind.decode().lower()} in PEM: write this node's own into it")
        return key, chain

    def open_channel(self, root_pem: bytes, attempt: int = 0) -> "grpc.aio.Channel":
        """A new channel, which connects at its first call; the caller closes it.

        A channel checks one name: with a `server_name`, every other attempt goes by the host of the address.
        """
        # Only here: who reads where a control plane is, at the start of a proxy, has no time for it yet.
        import grpc.aio

        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            # The caller paces its attempts; a pool shared with an earlier channel would add that one's backoff.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
            ("grpc.enable_http_proxy", 0),
        ]
        if self.server_name and attempt % 2 == 0:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        credentials = grpc.ssl_channel_credentials(root_pem, *(self.client_pair() or ()))
        return grpc.aio.secure_channel(self.address, credentials, options=options)


def _read(path: Path, what: str) -> bytes:
    """A file, at most one byte more than any may have. Raises: ValueError that names it, the reason and the mend."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: write {what} into it") from error


def _system_roots() -> Path:
    """Where this machine keeps the roots that it trusts."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return Path(paths.cafile)
    bundle = Path(paths.capath or "/etc/ssl/certs") / "ca-certificates.crt"
    if not bundle.exists():
        raise ValueError(f"root SYSTEM: {bundle} does not exist: install ca-certificates, or name a file of roots")
    return bundle


def host_and_port(name: str, value: str, default_port: int) -> str:
    """Read an address setting: `host[:port]`, `https://host[:port]` (a URL's port is 443 unless it is said); IPv6 in brackets.

    Raises: ValueError naming the setting `name`.
    """
    address = value.removeprefix("https://").rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(443 if value.startswith("https://") else default_port)
    bracketed = host.startswith("[") and host.endswith("]")
    bad_host = not host or "/" in host or not host.isprintable() or " " in host or (":" in host and not bracketed)
    if bad_host or not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"{name}={value!r}: not an address of a TLS server: write https://HOST:PORT")
    return f"{host}:{port}"
