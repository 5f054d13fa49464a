"""Workload TLS: contexts for an identity, and who a peer may be.

TLS 1.3 (1.2 where it is asked for), mutual, ALPN h2, no tickets, no server name. Suites and groups of 1.3 come from
ztunnel.openssl_conf. A peer's chain, its times, its key usage and its names are asked for during the handshake (see
ztunnel.verification).

Keys are read from a memfd: `ssl` loads paths only, and a key never touches a disk.
"""

import os
import ssl

from mesh.identity import Identity, first_identity
from ztunnel.authorities import Authorities
from ztunnel.channel import SetCertificate
from ztunnel.openssl import BOUND
from ztunnel.verification import PeerRefused, Verifications, Verifier

# X509_V_ERR_*
_EXPIRED = 10
_NOT_YET_VALID = 9
_UNTRUSTED = frozenset({2, 18, 19, 20, 21})
_BAD_PURPOSE = 26

_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer requires a certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our issuer",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer finds our certificate expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept our identity",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer finds our certificate bad",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer finds our certificate unfit for its purpose",
}


_TLS12_SUITES = ":".join(
    f"ECDHE-{kind}-AES{bits}-GCM-SHA{digest}" for bits, digest in ((256, 384), (128, 256)) for kind in ("ECDSA", "RSA")
)


_MAX_SESSIONS = 512


class Context(ssl.SSLContext):
    """Of one identity, for one role."""

    verifier: Verifier
    asked: object
    """OpenSSL has a pointer to it."""


class Credentials:
    """One identity's certificate, as contexts for both roles. Made again when the certificate changes."""

    def __init__(self, certificate: SetCertificate, tls12: bool = False, known: Verifications | None = None) -> None:
        """`known`: the certificates of peers that were verified before; None: none is remembered."""
        self._known = Verifications(0) if known is None else known
        self.identity = certificate.identity
        self.expires_unix_s = certificate.expires_unix_s
        self.authorities = Authorities(certificate.roots_pem, certificate.federated)
        """Whom it believes about peers."""
        self._server = _server_context(certificate, self.authorities, tls12, self._known)
        self._again = certificate if tls12 else None
        """For further server contexts: each remembers the sessions of TLS 1.2 that it began, and cannot be told not to."""
        self._greeted = 0
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, certificate, self.authorities, tls12, self._known)

    @property
    def server(self) -> Context:
        """For one connection that comes in."""
        if self._again is not None:
            self._greeted += 1
            if self._greeted > _MAX_SESSIONS:
                self._server, self._greeted = _server_context(self._again, self.authorities, True, self._known), 1
        return self._server


def _server_context(certificate: SetCertificate, authorities: Authorities, tls12: bool, known: Verifications) -> Context:
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate, authorities, tls12, known)
    context.num_tickets = 0
    return context


def _context(
    protocol: int, certificate: SetCertificate, authorities: Authorities, tls12: bool, known: Verifications
) -> Context:
    context = Context(protocol)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    if tls12:
        context.set_ciphers(_TLS12_SUITES)
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    if BOUND is not None:
        BOUND.send_no_root(context)
        BOUND.take_short_chains(context)
    context.verifier = Verifier(BOUND, known, authorities, server=protocol == ssl.PROTOCOL_TLS_SERVER)
    context.asked = context.verifier.attach(context)
    context.load_verify_locations(cadata=authorities.pem.decode("ascii"))
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.chain_pem + b"\n" + certificate.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def check_client(names: list[str], trust_domain: str, aliases: frozenset[str] = frozenset()) -> Identity:
    """Who a client is: its first workload identity of our trust domain or an alias. Raises: PeerRefused when it has none."""
    identity = first_identity(names)
    if identity is None:
        raise PeerRefused(f"wrong SAN: peer has no workload identity, got {names[:4]}")
    if identity.trust_domain == trust_domain:
        return identity
    ours = first_identity([name for name in names if name.startswith(f"spiffe://{trust_domain}/")])
    if ours is None and aliases:
        ours = next((one for one in map(_identity_of, names) if one is not None and one.trust_domain in aliases), None)
    if ours is None:
        raise PeerRefused(f"wrong trust domain: peer is {identity}, this mesh is {trust_domain}")
    return ours


def check_server(names: list[str], expected: frozenset[str], domains: frozenset[str] = frozenset()) -> Identity:
    """Who a server is: in `domains`, trust domains of one mesh, equal accounts are one identity.

    Raises: PeerRefused unless one of its names is expected; an empty set expects nobody.
    """
    if not expected.intersection(names):
        alias = _alias(names, expected, domains) if domains else None
        if alias is not None:
            return alias
        wanted = ", ".join(sorted(expected)) or "nobody"
        raise PeerRefused(f"wrong SAN: peer did not present the expected SAN ({wanted}), got {names[:4]}")
    identity = first_identity([name for name in names if name in expected]) or first_identity(names)
    if identity is None:
        raise PeerRefused(f"wrong SAN: peer has no workload identity, got {names[:4]}")
    return identity


def _identity_of(name: str) -> Identity | None:
    return first_identity([name])


def _alias(names: list[str], expected: frozenset[str], domains: frozenset[str]) -> Identity | None:
    """The first name that is an expected one but for its trust domain, both domains being ours."""
    wanted = {one[1:] for one in map(_identity_of, expected) if one is not None and one.trust_domain in domains}
    found = (one for one in map(_identity_of, names) if one is not None and one.trust_domain in domains)
    return next((one for one in found if one[1:] in wanted), None)


def reason_of(error: ssl.SSLError) -> str:
    """One line on why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        if code == _EXPIRED:
            return "certificate expired"
        if code == _NOT_YET_VALID:
            return "certificate not valid yet"
        if code in _UNTRUSTED:
            return f"untrusted issuer: {error.verify_message}"
        if code == _BAD_PURPOSE:
            return "certificate is not meant for this role (extended key usage)"
        return str(error.verify_message)
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no client certificate presented"
    return _ALERTS.get(reason) or reason.replace("_", " ").lower() or str(error)
