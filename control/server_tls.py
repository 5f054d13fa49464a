"""Control's own end of TLS: a certificate for the names and addresses that clients dial.

gRPC's server either requires a client certificate or never asks for one, hence two kinds of port: one that takes bearer
tokens, one that takes certificates. The server certificate lives a day, in memory only; the first connection after its
half-life, or after the roots have changed, gets a new one.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Lock

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pyroute2 import IPRoute

from control.root import new_serial
from control.rotation import Roots
from control.trust import Trust

SERVER_NAMES = ("weft-control", "istiod.istio-system.svc", "localhost")
SERVER_LIFETIME_S = 86400
_LOOPBACK = ("127.0.0.1", "::1")


class ServerCertificate:
    """The certificate that one port shows, renewed on demand.

    One object per port: gRPC asks each port's own source on every handshake, from threads of its own.
    """

    def __init__(
        self,
        trust: Trust,
        addresses: list[IPv4Address | IPv6Address],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._trust = trust
        self._addresses = addresses
        self._clock = clock
        self._lock = Lock()
        self._renew_at = 0.0
        self._roots: Roots | None = None

    def credentials(self, *, require_client_certificate: bool) -> grpc.ServerCredentials:
        """Credentials for one add_secure_port."""
        return grpc.dynamic_ssl_server_credentials(self.renewed(), self.renewed, require_client_certificate)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """A new certificate where there is none, it has passed its half-life or begins in the future, else None: keep it."""
        now, roots = self._clock(), self._trust.roots
        with self._lock:
            since = self._renew_at - SERVER_LIFETIME_S / 2  # before it, the clock was set back: nobody would take it yet
            if since <= now < self._renew_at and roots is self._roots:
                return None
            self._roots = roots
            self._renew_at = now + SERVER_LIFETIME_S / 2
        key = ec.generate_private_key(ec.SECP256R1())
        moment = datetime.fromtimestamp(now, UTC)
        leaf = roots.signer.sign_server(
            key.public_key(),
            list(SERVER_NAMES),
            self._addresses,
            timedelta(seconds=SERVER_LIFETIME_S),
            moment,
            new_serial(),
        )
        key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        chain, trusted = roots.server_chain(leaf, moment).encode(), roots.bundle_pem.encode()
        return grpc.ssl_server_certificate_configuration([(key_pem, chain)], root_certificates=trusted)


def server_addresses(listeners: Iterable[IPv4Address | IPv6Address]) -> list[IPv4Address | IPv6Address]:
    """The addresses that clients may dial: the listeners' own, and every local one as of now where one is a wildcard.

    Not to be called from a running event loop: pyroute2 brings its own.
    """
    addresses = {*map(ip_address, _LOOPBACK), *listeners}
    if any(one.is_unspecified for one in addresses):
        with IPRoute() as netlink:
            addresses |= {ip_address(message.get_attr("IFA_ADDRESS")) for message in netlink.get_addr()}
    return sorted((one for one in addresses if not one.is_unspecified), key=lambda one: (one.version, int(one)))
