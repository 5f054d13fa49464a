"""The gRPC servers: TLS for nodes, a unix socket for root."""

import logging
import os
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import grpc

from control.api import MAX_REQUEST_BYTES, ControlService
from control.configuration import Configuration, Listener
from control.discovery import DiscoveryService
from control.server_tls import ServerCertificate
from control.signing import CertificateService
from control.trust import Trust
from mesh.proto import control_pb2_grpc

MAX_NODE_REQUEST_BYTES = 32 << 20
"""The versions that a client retains: some 100 bytes for each of 200,000 resources."""
STOP_GRACE_S = 0.5
NODE_OPTIONS = (
    # Two processes on one port would share its connections unnoticed.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_NODE_REQUEST_BYTES),
    ("grpc.max_concurrent_streams", 128),
    # Who connects and says nothing is whoever reaches the port. gRPC waits for two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Clients ping every 10 to 30 s; dead ones are noticed within 45 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
)
_log = logging.getLogger("control.server")


def node_server(
    configuration: Configuration,
    trust: Trust,
    addresses: list[IPv4Address | IPv6Address],
    discovery: DiscoveryService,
    signing: CertificateService,
) -> grpc.aio.Server:
    """Make the server that nodes talk to, listening. Raises: OSError where an address cannot be listened on."""
    server = grpc.aio.server(options=NODE_OPTIONS)
    discovery.register(server)
    signing.register(server)
    for listeners, by_certificate in ((configuration.listeners, False), (configuration.certificate_listeners, True)):
        for listener in listeners:
            source = ServerCertificate(trust, addresses)
            port = _bind(server, listener, source.credentials(require_client_certificate=by_certificate))
            kind = "certificates" if by_certificate else "node tokens"
            _log.info("listening: address=%s for=%s", Listener(listener.address, port), kind)
    return server


def _bind(server: grpc.aio.Server, listener: Listener, credentials: grpc.ServerCredentials) -> int:
    try:
        return int(server.add_secure_port(str(listener), credentials))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listener}: is the port taken, the address one of this machine's?") from error


def control_server(path: Path, service: ControlService) -> grpc.aio.Server:
    """Make the server for root, listening on a socket that nobody else may open.

    Raises: OSError where another process serves there, or the socket cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_if_served(path)
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", MAX_REQUEST_BYTES),))
    control_pb2_grpc.add_ControlServicer_to_server(service, server)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {path}: is it longer than 107 bytes?") from error
    finally:
        os.umask(mask)
    os.chmod(path, 0o600)
    _log.info("listening: socket=%s for=root", path)
    return server


def _refuse_if_served(path: Path) -> None:
    """A socket file that nobody serves is what a killed process left behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
    raise OSError(f"another process serves on {path}: stop it, or set WEFT_RUN_DIR")
