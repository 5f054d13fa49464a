"""Workload TLS: contexts for an identity, and the checks that Python's `ssl` cannot make by itself.

TLS 1.3 (1.2 where it is asked for), mutual, ALPN h2, no tickets, no server name. Suites and groups of 1.3 come from
ztunnel.openssl_conf. The chain, its times
and its key usage are verified by OpenSSL during the handshake; trust domain and SPIFFE names after it and before the first
byte is read, as there is no verify callback. A peer that fails there is reset, where Istio's ztunnel sends alert 46.

Keys are read from a memfd: `ssl` loads paths only, and a key never touches a disk.
"""

import _ssl
import ctypes
import os
import ssl
import sys
from collections.abc import Iterable

from mesh.identity import Identity, first_identity
from ztunnel.channel import Flag, SetCertificate

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
_MAX_NAMES, _USUAL_DER_BYTES = 256, 4096
_names: dict[bytes, list[str]] = {}
"""What certificates say: those of peers that come again. Whether one is to be trusted is OpenSSL's to say, each time."""
_CTRL_MODE, _MODE_NO_AUTO_CHAIN = 33, 8  # openssl/ssl.h
_FIRST_LOOKED_AT, _LAST_LOOKED_AT = (3, 11), (3, 13)
"""Releases of CPython whose Modules/_ssl.c begins its PySSLContext with the SSL_CTX."""


class PeerRefused(Exception):
    """The peer is not who it must be; the text says why."""

    flag: Flag = "IDENTITY_ERROR"


class Credentials:
    """One identity's certificate, as contexts for both roles. Made again when the certificate changes."""

    def __init__(self, certificate: SetCertificate, tls12: bool = False) -> None:
        self.identity = certificate.identity
        self.expires_unix_s = certificate.expires_unix_s
        self._server = _server_context(certificate, tls12)
        self._again = certificate if tls12 else None
        """For further server contexts: each remembers the sessions of TLS 1.2 that it began, and cannot be told not to."""
        self._greeted = 0
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, certificate, tls12)

    @property
    def server(self) -> ssl.SSLContext:
        """For one connection that comes in."""
        if self._again is not None:
            self._greeted += 1
            if self._greeted > _MAX_SESSIONS:
                self._server, self._greeted = _server_context(self._again, tls12=True), 1
        return self._server


def _server_context(certificate: SetCertificate, tls12: bool) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate, tls12)
    context.num_tickets = 0
    return context


def _context(protocol: int, certificate: SetCertificate, tls12: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    if tls12:
        context.set_ciphers(_TLS12_SUITES)
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    _no_auto_chain(context)
    context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.chain_pem + b"\n" + certificate.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def _no_auto_chain(context: ssl.SSLContext) -> None:
    """Send the chain that was loaded, and nothing else.

    By default OpenSSL builds a chain at every handshake where a file holds the leaf alone: it verifies our own certificate, and
    sends the root too, which the peer parses for nothing. That is 30 % of a handshake's CPU at both ends. Python has no name
    for the mode; the pointer behind a context's head is its SSL_CTX, in releases where somebody looked. In others, and where
    `_ssl` does not tell the library that it uses, the default stays.
    """
    if sys.implementation.name != "cpython" or not _FIRST_LOOKED_AT <= sys.version_info[:2] <= _LAST_LOOKED_AT:
        return  # a wrong guess would write into somebody else's memory
    try:
        control = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (AttributeError, OSError):
        return
    control.argtypes, control.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p), ctypes.c_long
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    control(pointer, _CTRL_MODE, _MODE_NO_AUTO_CHAIN, None)


def names_of(peer: ssl.SSLObject) -> list[str]:
    """The URI names of the peer's verified certificate.

    Raises: PeerRefused for a resumed session, in which nothing was verified: neither dates nor roots nor revocation.
    """
    if peer.session_reused:
        raise PeerRefused("the peer resumed a session: only whole handshakes are served")
    der = peer.getpeercert(binary_form=True) or b""
    known = _names.get(der)
    if known is None:
        certificate = peer.getpeercert()
        names: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ()) if certificate else ()  # type: ignore[assignment]
        known = [value for kind, value in names if kind == "URI"]
        if len(der) <= _USUAL_DER_BYTES:
            if len(_names) >= _MAX_NAMES:
                del _names[next(iter(_names))]
            _names[der] = known
    return known


def chain_of(peer: ssl.SSLObject) -> list[bytes]:
    """The peer's verified chain, DER, leaf first."""
    # Public from Python 3.13 on; the object below has it since 3.10.
    return [one.public_bytes(_ssl.ENCODING_DER) for one in peer._sslobj.get_verified_chain() or ()]  # type: ignore[attr-defined]


def check_client(names: list[str], trust_domain: str, aliases: frozenset[str] = frozenset()) -> Identity:
    """Who a client is: its first workload identity of our trust domain or an alias. Raises: PeerRefused when it has none."""
    identity = first_identity(names)
    if identity is None:
        raise PeerRefused(f"wrong SAN: peer has no workload identity, got {names[:4]}")
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
        raise PeerRefused(
            f"invalid peer certificate: wrong SAN: peer did not present the expected SAN ({wanted}), got {names[:4]}"
        )
    identity = first_identity([name for name in names if name in expected]) or first_identity(names)
    if identity is None:
        raise PeerRefused(f"invalid peer certificate: wrong SAN: peer has no workload identity, got {names[:4]}")
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
        return f"invalid peer certificate: {error.verify_message}"
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no client certificate presented"
    return _ALERTS.get(reason) or reason.replace("_", " ").lower() or str(error)
