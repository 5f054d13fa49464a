"""The root key on disk: made on first start, kept for ever, readable by root only. The one key that weft stores."""

import os
import secrets
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control.authority import Authority, make_root
from control.files import write_file

KEY_FILE = "root-key.pem"
CERTIFICATE_FILE = "root-cert.pem"


def load_or_make_root(folder: Path, organization: str, now: datetime) -> Authority:
    """Read the root of this control plane, or make it where there is none yet.

    Raises: ValueError where only one of the two files exists, one is no P-256 pair, or others may read the key.
    """
    key_path, certificate_path = folder / KEY_FILE, folder / CERTIFICATE_FILE
    if not key_path.exists() and not certificate_path.exists():
        authority = make_root(ec.generate_private_key(ec.SECP256R1()), organization, now, new_serial())
        # The certificate first: a crash between the two leaves a state that is refused below, never a key without its root.
        write_file(certificate_path, authority.root_pem.encode(), 0o644)
        write_file(key_path, _key_pem(authority.key), 0o600)
        return authority
    for path, other in ((key_path, certificate_path), (certificate_path, key_path)):
        if not path.exists():
            raise ValueError(f"{path} is missing beside {other}: restore it, or remove both to start with a new root")
    if key_path.stat().st_mode & 0o077:
        raise ValueError(f"{key_path} may be read by others: chmod 600 it, and consider a new root")
    return _read(key_path, certificate_path)


def new_serial() -> int:
    """A certificate's serial number: 127 random bits, so that it is positive in 16 bytes."""
    return secrets.randbits(127) | 1


def _read(key_path: Path, certificate_path: Path) -> Authority:
    try:
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key_path}, {certificate_path}: cannot be read as PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise ValueError(f"{certificate_path} does not belong to the key in {key_path}")
    return Authority(certificate, key)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def make_folder(folder: Path) -> None:
    """Make a folder that only root enters."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
