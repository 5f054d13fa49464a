"""The roots on disk: made on first start, replaced by a rotation, readable by root only. Their keys are all that weft stores.

`root-key.pem` and `root-cert.pem` are the pair that signs. `rotation.json` is what a rotation knows besides; while it names a
successor that signs already, the pair is being replaced, and whoever reads it next finishes that.
"""

import json
import os
import secrets
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control.authority import Authority, make_root
from control.files import write_file
from control.rotation import Roots

KEY_FILE = "root-key.pem"
CERTIFICATE_FILE = "root-cert.pem"
ROTATION_FILE = "rotation.json"
_PEM = serialization.Encoding.PEM
_UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, UnsupportedAlgorithm)
"""How reading ends of what somebody else wrote."""


def load_or_make_roots(folder: Path, organization: str, now: datetime) -> Roots:
    """Read the roots of this control plane, or make one where there is none yet.

    Raises: ValueError where only one of the two files exists, one is no P-256 pair, or others may read a key.
    """
    key_path, certificate_path, rotation_path = folder / KEY_FILE, folder / CERTIFICATE_FILE, folder / ROTATION_FILE
    state = _read_rotation(rotation_path) if rotation_path.exists() else {}
    if state.get("signs") and state["successor"]:
        _write_pair(folder, _successor(state, rotation_path))
    elif not key_path.exists() and not certificate_path.exists():
        _write_pair(folder, new_root(organization, now))
    for path, other in ((key_path, certificate_path), (certificate_path, key_path)):
        if not path.exists():
            raise ValueError(f"{path} is missing beside {other}: restore it, or remove both to start with a new root")
    _refuse_open(key_path)
    signer = _authority(key_path.read_bytes(), certificate_path.read_bytes(), key_path)
    return _roots(signer, state, rotation_path) if state else Roots(signer)


def save_roots(folder: Path, roots: Roots) -> None:
    """Write the roots. A crash leaves the old or the new ones. Raises: OSError."""
    signs = (folder / CERTIFICATE_FILE).read_text() != roots.signer.root_pem
    _write_rotation(folder, roots, roots.signer if signs else roots.successor, signs)
    if signs:
        _write_pair(folder, roots.signer)
        _write_rotation(folder, roots, roots.successor, False)


def new_root(organization: str, now: datetime) -> Authority:
    """A root with a key of its own."""
    return make_root(ec.generate_private_key(ec.SECP256R1()), organization, now, new_serial())


def new_serial() -> int:
    """A certificate's serial number: 127 random bits, so that it is positive in 16 bytes."""
    return secrets.randbits(127) | 1


def _write_pair(folder: Path, authority: Authority) -> None:
    # The certificate first: a crash on first start leaves a state that is refused, never a key without its root.
    write_file(folder / CERTIFICATE_FILE, authority.root_pem.encode(), 0o644)
    write_file(folder / KEY_FILE, _key_pem(authority.key).encode(), 0o600)


def _write_rotation(folder: Path, roots: Roots, successor: Authority | None, signs: bool) -> None:
    state = {
        "since_s": roots.since_s,
        "overlap_s": roots.overlap_s,
        "expired_s": roots.expired_s,
        "signs": signs,
        "successor": [_key_pem(successor.key), successor.root_pem] if successor else None,
        "retiring": roots.retiring.public_bytes(_PEM).decode() if roots.retiring else None,
        "crossed": [one.public_bytes(_PEM).decode() for one in roots.crossed],
    }
    write_file(folder / ROTATION_FILE, json.dumps(state).encode(), 0o600)


def _read_rotation(path: Path) -> dict[str, Any]:
    _refuse_open(path)
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        if missing := {"since_s", "overlap_s", "signs", "successor", "retiring", "crossed"} - state.keys():
            raise ValueError(f"without {sorted(missing)}")
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return state


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: no state of a rotation: {error}: restore it, or remove it and renew all nodes")


def _roots(signer: Authority, state: dict[str, Any], path: Path) -> Roots:
    try:
        roots = Roots(
            signer,
            retiring=x509.load_pem_x509_certificate(state["retiring"].encode()) if state["retiring"] else None,
            crossed=tuple(x509.load_pem_x509_certificate(one.encode()) for one in state["crossed"]),
            since_s=float(state["since_s"]),
            overlap_s=int(state["overlap_s"]),
            expired_s=float(state.get("expired_s", 0.0)),
        )
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    announced = state["successor"] and not state["signs"]
    return replace(roots, successor=_successor(state, path)) if announced else roots


def _successor(state: dict[str, Any], path: Path) -> Authority:
    try:
        key, certificate = (one.encode() for one in state["successor"])
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return _authority(key, certificate, path)


def _refuse_open(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} may be read by others: chmod 600 it, and consider a new root")


def _authority(key_pem: bytes, certificate_pem: bytes, path: Path) -> Authority:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        public_key = certificate.public_key()
    except _UNREADABLE as error:
        raise ValueError(f"{path} or its certificate: cannot be read as PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or public_key != key.public_key():
        raise ValueError(f"the root certificate does not belong to the key in {path}")
    return Authority(certificate, key)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def make_folder(folder: Path) -> None:
    """Make a folder that only root enters."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
