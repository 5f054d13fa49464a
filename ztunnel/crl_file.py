"""The file of certificate revocation lists (CRL_PATH), read again within two seconds of its change.

PEM or DER, any number of lists. A list in the name of a root that this proxy knows must be signed by it; those of others, and
those that were there before the first root was known, are taken as they are: they can but revoke. Their expiry is ignored: a
list that nobody renewed still names who is revoked. A file that cannot be read leaves the last lists in force; one that does
not exist yet is waited for.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from wire.followed_file import FollowedFile
from ztunnel.channel import SetRevoked
from ztunnel.der import certificate_key, split_elements

MAX_FILE_BYTES = 16 << 20
MAX_ENTRIES = 200_000
_MAX_BUNDLES = 8
"""Different bundles of roots that are known at a time, the newest ones: two are, while a root is replaced."""
_BEGIN = b"-----BEGIN X509 CRL-----"
_BLOCK = re.compile(_BEGIN + rb".*?-----END X509 CRL-----", re.DOTALL)
_log = logging.getLogger(__name__)


def read_lists(data: bytes, roots: Sequence[x509.Certificate] = ()) -> dict[bytes, frozenset[bytes]]:
    """Issuer's name (DER) -> serial numbers (content octets) that lists revoke; no list is no revocation.

    Raises: ValueError, also for a list in the name of `roots` that none of them signed.
    """
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            blocks = _BLOCK.findall(data)
            if len(blocks) != data.count(_BEGIN):
                raise ValueError("a list is cut short")
            lists = [x509.load_pem_x509_crl(block) for block in blocks]
        else:
            lists = [x509.load_der_x509_crl(one) for one in split_elements(data)]
        revoked: dict[bytes, set[bytes]] = {}
        entries = 0
        for one in lists:
            _check_signature(one, roots)
            serials = revoked.setdefault(one.issuer.public_bytes(), set())
            for entry in one:
                serials.add(_content_octets(entry.serial_number))
                entries += 1
                if entries > MAX_ENTRIES:
                    raise ValueError(f"more than {MAX_ENTRIES} entries")
    except (TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from error
    return {issuer: frozenset(serials) for issuer, serials in revoked.items()}


def _check_signature(one: x509.CertificateRevocationList, roots: Sequence[x509.Certificate]) -> None:
    keys = [root.public_key() for root in roots if root.subject == one.issuer]
    if keys and not any(one.is_signature_valid(key) for key in keys):  # type: ignore[arg-type]  # TypeError for a key that signs none
        raise ValueError(f"the list of {one.issuer.rfc4514_string()} is not signed by it")


def _content_octets(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


class CrlFile:
    """One file and what it says; tells of each change."""

    def __init__(self, path: Path, tell: Callable[[SetRevoked], None]) -> None:
        """Raises: ValueError or OSError for a file that is there and cannot be read: then nobody would be revoked."""
        self._path = path
        self._tell = tell
        self._file = FollowedFile(path)
        self._bundles: tuple[bytes, ...] = ()
        self._new_bundle = asyncio.Event()
        self.revoked: dict[bytes, frozenset[bytes]] = {}
        if not self._file.is_there:
            _log.warning("%s (CRL_PATH) does not exist: nobody is revoked until it does", path)
        else:
            self.revoked = self._read()

    def statement(self) -> SetRevoked:
        """All that is revoked, for a worker that starts."""
        return SetRevoked(self.revoked)

    def names(self, chain_pem: bytes) -> bool:
        """Whether lists in force name any certificate of a chain."""
        chain = (one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(chain_pem))
        return any(serial in self.revoked.get(issuer, ()) for issuer, serial in map(certificate_key, chain))

    def know(self, roots_pem: bytes) -> None:
        """Check lists in the name of these roots from now on, and those that are in force."""
        if roots_pem not in self._bundles:
            self._bundles = (*self._bundles, roots_pem)[-_MAX_BUNDLES:]
            self._new_bundle.set()

    async def run(self) -> None:
        """Follow the file, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._file.follow(self._read, self._take, "the lists read before stay in force"))
            group.create_task(self._check_forever())

    async def _check_forever(self) -> None:
        while True:
            await self._new_bundle.wait()
            self._new_bundle.clear()
            try:
                if self._file.is_there:
                    await asyncio.to_thread(self._read)
            except (OSError, ValueError) as error:
                _log.error("%s: what was read before stays in force", error)

    def _take(self, revoked: dict[bytes, frozenset[bytes]]) -> None:
        self.revoked = revoked
        _log.info("%s: %d certificates are revoked", self._path, sum(map(len, revoked.values())))
        self._tell(self.statement())

    def _read(self) -> dict[bytes, frozenset[bytes]]:
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(
                f"{self._path} (CRL_PATH): more than {MAX_FILE_BYTES >> 20} MiB: leave out lists of other authorities"
            )
        roots = [root for bundle in self._bundles for root in x509.load_pem_x509_certificates(bundle)]
        try:
            return read_lists(data, roots)
        except ValueError as error:
            raise ValueError(f"{self._path} (CRL_PATH): no revocation lists: {error}: write PEM or DER") from error
