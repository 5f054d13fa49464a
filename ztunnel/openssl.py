"""OpenSSL's own calls, where Python's `ssl` has none for what a handshake needs.

They are those of the very library that `_ssl` uses; `BOUND` is None where it does not tell which that is, or lacks one of them,
or in a release of CPython that nobody looked into: a wrong guess would touch somebody else's memory. Pointers are ints.
"""

import _ssl
import calendar
import ctypes
import mmap
import ssl
import sys
from collections.abc import Callable
from typing import Any

_FIRST_LOOKED_AT, _LAST_LOOKED_AT = (3, 11), (3, 13)
"""Releases of CPython whose Modules/_ssl.c begins its PySSLContext with the SSL_CTX."""
_CTRL_MODE, _CTRL_CLEAR_MODE, _CTRL_MAX_CERT_LIST = 33, 78, 51  # openssl/ssl.h
_MODE_NO_AUTO_CHAIN, _MODE_AUTO_RETRY = 8, 4
MOST_CHAIN_BYTES = 16 << 10
"""Of a peer's certificates: nine of RSA with 4,096 bits, 30 of P-256. Each costs up to 0.1 ms, and nobody is known yet."""
_ALT_NAMES, _URI = 85, 6  # NID_subject_alt_name, GEN_URI
_MOST_BYTES = 1 << 17
"""More than OpenSSL takes from a peer: SSL_MAX_CERT_LIST_DEFAULT."""
_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
Verify = ctypes.CFUNCTYPE(_I, _P, _P)
"""int (*)(X509_STORE_CTX *, void *): 1 accepts, 0 refuses. When Python code raises, what OpenSSL reads is not defined."""


class OpenSSL:
    """The calls. Raises: AttributeError where one is missing."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        def call(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            found: Any = library[name]
            found.restype, found.argtypes = result, arguments
            return found  # type: ignore[no-any-return]

        self._control = call("SSL_CTX_ctrl", _L, _P, _I, _L, _P)
        self._control_one = call("SSL_ctrl", _L, _P, _I, _L, _P)
        self._attached = call("X509_STORE_CTX_get_ex_data", _P, _P, _I)
        self._place_of_connection: int = call("SSL_get_ex_data_X509_STORE_CTX_idx", _I)()
        self._set_verify = call("SSL_CTX_set_cert_verify_callback", None, _P, Verify, _P)
        self.verify = call("X509_verify_cert", _I, _P)
        self.leaf = call("X509_STORE_CTX_get0_cert", _P, _P)
        self.presented = call("X509_STORE_CTX_get0_untrusted", _P, _P)
        self.chain = call("X509_STORE_CTX_get0_chain", _P, _P)
        self.set_error = call("X509_STORE_CTX_set_error", None, _P, _I)
        self.clear_errors = call("ERR_clear_error", None)
        self.count = call("OPENSSL_sk_num", _I, _P)
        self.at = call("OPENSSL_sk_value", _P, _P, _I)
        self._encode = call("i2d_X509", _I, _P, _P)
        self._times = call("X509_get0_notBefore", _P, _P), call("X509_get0_notAfter", _P, _P)
        self._read_time = call("ASN1_TIME_to_tm", _I, _P, _P)
        self._extension = call("X509_get_ext_d2i", _P, _P, _I, _P, _P)
        self._name = call("GENERAL_NAME_get0_value", _P, _P, _P)
        self._free_names = call("GENERAL_NAMES_free", None, _P)
        self._text, self._text_bytes = call("ASN1_STRING_get0_data", _P, _P), call("ASN1_STRING_length", _I, _P)
        self._encoded = memoryview(mmap.mmap(-1, _MOST_BYTES))  # of which pages are there that were needed
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._encoded))
        self._place = _P()
        self._reference = ctypes.byref(self._place)

    def send_no_root(self, context: ssl.SSLContext) -> None:
        """Send the chain that was loaded, and nothing else.

        By default OpenSSL builds a chain at every handshake where a file holds the leaf alone: it verifies our own certificate,
        and sends the root too, which the peer parses for nothing. That is 30 % of a handshake's CPU at both ends.
        """
        self._control(_pointer(context), _CTRL_MODE, _MODE_NO_AUTO_CHAIN, None)

    def take_short_chains(self, context: ssl.SSLContext) -> None:
        """Refuse more than MOST_CHAIN_BYTES of certificates before looking at them; by default it is 100 KiB, and 30 ms."""
        self._control(_pointer(context), _CTRL_MAX_CERT_LIST, MOST_CHAIN_BYTES, None)

    def connection(self, store: int) -> int:
        """The SSL that verifies by an X509_STORE_CTX."""
        found: int = self._attached(store, self._place_of_connection)
        return found

    def pause_after_messages(self, connection: int) -> None:
        """Have SSL_read end with WANT_READ behind each message that is no data (KeyUpdate, a ticket), though more has come.

        By default it goes on until there is data: who sends nothing but KeyUpdates keeps it for 10 us each, in one call.
        """
        self._control_one(connection, _CTRL_CLEAR_MODE, _MODE_AUTO_RETRY, None)

    def ask(self, context: ssl.SSLContext, verify: Any) -> None:
        """Have a Verify asked in the place of `verify`; who calls keeps it for as long as the context."""
        self._set_verify(_pointer(context), verify, None)

    def der(self, certificate: int) -> bytes:
        """A certificate as it came, its signature included. Raises: ValueError."""
        encode = self._encode
        size = encode(certificate, None)
        if not 0 < size <= _MOST_BYTES:
            raise ValueError(f"OpenSSL makes {size} bytes of a certificate")
        self._place.value = self._address
        if encode(certificate, self._reference) != size:
            raise ValueError("OpenSSL encodes a certificate in two ways")
        return self._encoded[:size].tobytes()

    def validity(self, certificate: int) -> tuple[int, int]:
        """From when until when, in unix seconds. Raises: ValueError."""
        first, last = (self._seconds(read(certificate)) for read in self._times)
        return first, last

    def _seconds(self, time: int) -> int:
        fields = (_I * 16)()  # struct tm: nine of them and, in glibc, 24 bytes more
        if not self._read_time(time, fields):
            raise ValueError("OpenSSL cannot read the certificate's times")
        seconds, minutes, hours, day, month, year = fields[:6]
        return calendar.timegm((year + 1900, month + 1, day, hours, minutes, seconds))

    def uris(self, certificate: int) -> list[str]:
        """Its URI names, as `getpeercert` reads them. Raises: ValueError."""
        names = self._extension(certificate, _ALT_NAMES, None, None)
        if not names:
            return []
        kind, found = _I(), []
        try:
            for place in range(self.count(names)):
                text = self._name(self.at(names, place), ctypes.byref(kind))
                if kind.value == _URI:
                    found.append(ctypes.string_at(self._text(text), self._text_bytes(text)).decode("utf-8"))
        finally:
            self._free_names(names)
        return found


def _pointer(context: ssl.SSLContext) -> ctypes.c_void_p:
    """The SSL_CTX, which is behind a context's head."""
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)


def bind() -> OpenSSL | None:
    """The calls, if they are there and somebody looked."""
    if sys.implementation.name != "cpython" or not _FIRST_LOOKED_AT <= sys.version_info[:2] <= _LAST_LOOKED_AT:
        return None
    try:
        return OpenSSL(ctypes.PyDLL(_ssl.__file__))  # it would cost more to give the interpreter away for so short
    except (AttributeError, OSError):
        return None


BOUND = bind()
