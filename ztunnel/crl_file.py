"""The file of certificate revocation lists (CRL_PATH), read again within two seconds of its change.

PEM or DER, any number of lists. As with a root file, who may write it is trusted: signatures of lists are not checked. Their
expiry is ignored: a list that nobody renewed still names who is revoked. A file that cannot be read leaves the last lists in
force; one that does not exist yet is waited for.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from ztunnel.channel import SetRevoked
from ztunnel.der import split_elements
from ztunnel.followed_file import FollowedFile

MAX_FILE_BYTES = 16 << 20
MAX_ENTRIES = 200_000
_BEGIN = b"-----BEGIN X509 CRL-----"
_BLOCK = re.compile(_BEGIN + rb".*?-----END X509 CRL-----", re.DOTALL)
_log = logging.getLogger(__name__)


def read_lists(data: bytes) -> dict[bytes, frozenset[bytes]]:
    """Issuer's name (DER) -> serial numbers (content octets) that lists revoke; no list is no revocation.

    Raises: ValueError.
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
            serials = revoked.setdefault(one.issuer.public_bytes(), set())
            for entry in one:
                serials.add(_content_octets(entry.serial_number))
                entries += 1
                if entries > MAX_ENTRIES:
                    raise ValueError(f"more than {MAX_ENTRIES} entries")
    except (TypeError, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from error
    return {issuer: frozenset(serials) for issuer, serials in revoked.items()}


def _content_octets(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


class CrlFile:
    """One file and what it says; tells of each change."""

    def __init__(self, path: Path, tell: Callable[[SetRevoked], None]) -> None:
        """Raises: ValueError or OSError for a file that is there and cannot be read: then nobody would be revoked."""
        self._path = path
        self._tell = tell
        self._file = FollowedFile(path)
        self.revoked: dict[bytes, frozenset[bytes]] = {}
        if not self._file.is_there:
            _log.warning("%s (CRL_PATH) does not exist: nobody is revoked until it does", path)
        else:
            self.revoked = self._read()

    def statement(self) -> SetRevoked:
        """All that is revoked, for a worker that starts."""
        return SetRevoked(self.revoked)

    async def run(self) -> None:
        """Follow the file, until cancelled."""
        await self._file.follow(self._read, self._take, "the lists read before stay in force")

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
        try:
            return read_lists(data)
        except ValueError as error:
            raise ValueError(f"{self._path} (CRL_PATH): no revocation lists: {error}: write PEM or DER") from error
