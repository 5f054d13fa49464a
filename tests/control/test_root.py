from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from control.authority import make_root
from control.lock import take_lock
from control.root import load_or_make_root, new_serial

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_root_is_made_once_and_kept(tmp_path: Path) -> None:
    made = load_or_make_root(tmp_path, "cluster.local", NOW)
    again = load_or_make_root(tmp_path, "cluster.local", NOW)
    assert again.certificate == made.certificate
    assert again.key.private_numbers() == made.key.private_numbers()
    assert isinstance(made.key.curve, ec.SECP256R1)
    assert (tmp_path / "root-key.pem").stat().st_mode & 0o777 == 0o600
    assert (made.certificate.not_valid_after_utc - NOW).days == 3650
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root-cert.pem", "root-key.pem"]


def test_half_a_root_or_an_open_one_is_refused(tmp_path: Path) -> None:
    load_or_make_root(tmp_path, "cluster.local", NOW)
    key, certificate = tmp_path / "root-key.pem", tmp_path / "root-cert.pem"
    key.chmod(0o640)
    with pytest.raises(ValueError, match=r"may be read by others: chmod 600"):
        load_or_make_root(tmp_path, "cluster.local", NOW)
    key.chmod(0o600)
    pem = certificate.read_text()
    certificate.write_text(make_root(ec.generate_private_key(ec.SECP256R1()), "other", NOW, 1).root_pem)
    with pytest.raises(ValueError, match="does not belong to the key"):
        load_or_make_root(tmp_path, "cluster.local", NOW)
    certificate.write_text("no certificate")
    with pytest.raises(ValueError, match="cannot be read as PEM"):
        load_or_make_root(tmp_path, "cluster.local", NOW)
    certificate.write_text(pem)
    key.unlink()
    with pytest.raises(ValueError, match=r"root-key\.pem is missing beside"):
        load_or_make_root(tmp_path, "cluster.local", NOW)


def test_serial_numbers_are_positive_in_sixteen_bytes() -> None:
    serials = {new_serial() for _ in range(100)}
    assert len(serials) == 100
    assert all(0 < serial < 2**127 for serial in serials)


def test_a_state_folder_has_one_user(tmp_path: Path) -> None:
    take_lock(tmp_path)
    with pytest.raises(ValueError, match=r"another weft-control \(pid \d+\) uses"):
        take_lock(tmp_path)
