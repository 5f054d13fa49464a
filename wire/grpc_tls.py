"""gRPC channels to the control plane: TLS with a pinned root, and the credentials that go with every call.

Root and token are files that somebody renews: both are read again for every channel or call, never kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

MAX_MESSAGE_BYTES = 200 << 20
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 30_000, 10_000
_RECONNECT_MS = 100


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service of the control plane is, and how to trust it and be trusted.

    `server_name` is the name in its certificate where that is not the host of `address`.
    """

    address: str
    """`host:port`."""
    root_pem_path: Path
    token_path: Path | None
    """Bearer token; None sends none."""
    cluster_id: str
    server_name: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further metadata of every call."""
    client_folder: Path | None = None
    """Where `key.pem` and `cert-chain.pem` lie that we show the server: a certificate stands for a token, or goes with one."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of the next call. Raises: OSError or ValueError when the token cannot be read."""
        rows = [*self.headers.items()]
        if self.token_path is not None and (self.client_folder is None or self.token_path.exists()):
            token = self.token_path.read_text().strip()
            if not token or not token.isascii() or not token.isprintable():
                raise ValueError(f"{self.token_path}: holds no token: write the node's token into it")
            rows.append(("authorization", f"Bearer {token}"))
        rows.append(("clusterid", self.cluster_id))
        return tuple(rows)

    def root_pem(self) -> bytes:
        """The root certificates as they are now. Raises: OSError or ValueError when they cannot be read."""
        pem = self.root_pem_path.read_bytes()
        if b"-----BEGIN CERTIFICATE-----" not in pem:
            raise ValueError(f"{self.root_pem_path}: holds no PEM certificate: write control's root certificate into it")
        return pem

    def client_pair(self) -> tuple[bytes, bytes] | None:
        """Our key and its chain as they are now, PEM; None where we show none. Raises: OSError or ValueError."""
        if self.client_folder is None:
            return None
        key_path, chain_path = self.client_folder / "key.pem", self.client_folder / "cert-chain.pem"
        key, chain = key_path.read_bytes(), chain_path.read_bytes()
        for path, pem, kind in ((key_path, key, b"PRIVATE KEY"), (chain_path, chain, b"CERTIFICATE")):
            if kind + b"-----" not in pem:
                raise ValueError(f"{path}: holds no {kind.decode().lower()} in PEM: write this node's own into it")
        return key, chain

    def open_channel(self, root_pem: bytes) -> grpc.aio.Channel:
        """A new channel, which connects at its first call; the caller closes it."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            # The caller paces its attempts; a pool shared with an earlier channel would add that one's backoff.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", 5_000),  # also the bound of one connection attempt
            ("grpc.enable_http_proxy", 0),
        ]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        credentials = grpc.ssl_channel_credentials(root_pem, *(self.client_pair() or ()))
        return grpc.aio.secure_channel(self.address, credentials, options=options)


def host_and_port(name: str, value: str, default_port: int) -> str:
    """Read an address setting: `host:port`, `https://host[:port]`; IPv6 in brackets.

    Raises: ValueError naming the setting `name`.
    """
    address = value.removeprefix("https://").rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(default_port)
    bracketed = host.startswith("[") and host.endswith("]")
    bad_host = not host or "/" in host or (":" in host and not bracketed)
    if bad_host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{name}={value!r}: not an address of a TLS server: write https://HOST:PORT")
    return f"{host}:{port}"
