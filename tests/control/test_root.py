import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from control.authority import make_root
from control.lock import take_lock
from control.root import load_or_make_roots, new_root, new_serial, save_roots
from control.rotation import Phase, advance, begin

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_root_is_made_once_and_kept(tmp_path: Path) -> None:
    made = load_or_make_roots(tmp_path, "cluster.local", NOW).signer
    again = load_or_make_roots(tmp_path, "cluster.local", NOW).signer
    assert again.certificate == made.certificate
    assert again.key.private_numbers() == made.key.private_numbers()
    assert isinstance(made.key.curve, ec.SECP256R1)
    assert (tmp_path / "root-key.pem").stat().st_mode & 0o777 == 0o600
    assert (made.certificate.not_valid_after_utc - NOW).days == 3650
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root-cert.pem", "root-key.pem"]


def test_half_a_root_or_an_open_one_is_refused(tmp_path: Path) -> None:
    load_or_make_roots(tmp_path, "cluster.local", NOW)
    key, certificate = tmp_path / "root-key.pem", tmp_path / "root-cert.pem"
    key.chmod(0o640)
    with pytest.raises(ValueError, match=r"may be read by others: chmod 600"):
        load_or_make_roots(tmp_path, "cluster.local", NOW)
    key.chmod(0o600)
    pem = certificate.read_text()
    certificate.write_text(make_root(ec.generate_private_key(ec.SECP256R1()), "other", NOW, 1).root_pem)
    with pytest.raises(ValueError, match="does not belong to the key"):
        load_or_make_roots(tmp_path, "cluster.local", NOW)
    for text in (b"no certificate", b"\xff"):
        certificate.write_bytes(text)
        with pytest.raises(ValueError, match=r"root-key\.pem or its certificate: cannot be read as PEM"):
            load_or_make_roots(tmp_path, "cluster.local", NOW)
    certificate.write_text(pem)
    key.unlink()
    with pytest.raises(ValueError, match=r"root-key\.pem is missing beside"):
        load_or_make_roots(tmp_path, "cluster.local", NOW)


def test_a_rotation_survives_a_restart_in_every_phase(tmp_path: Path) -> None:
    load = partial(load_or_make_roots, tmp_path, "cluster.local", NOW)
    roots = begin(load(), new_root("cluster.local", NOW), 60, 1000.0)
    expected = [(Phase.ANNOUNCED, 1060.0), (Phase.SIGNING, 1120.0), (Phase.STEADY, None)]
    for place, (phase, next_at_s) in enumerate(expected):
        save_roots(tmp_path, roots)
        kept = load()
        assert kept == replace(roots, signer=kept.signer, successor=kept.successor)
        assert (kept.phase, kept.next_at_s, kept.bundle_pem) == (phase, next_at_s, roots.bundle_pem)
        assert kept.signer.key.private_numbers() == roots.signer.key.private_numbers()
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
            "root-cert.pem": 0o644, "root-key.pem": 0o600, "rotation.json": 0o600,
        }  # fmt: skip
        secrets = (tmp_path / "rotation.json").read_text().count("PRIVATE KEY")
        assert secrets == (2 if place == 0 else 0), "begin and end line of the successor's key, while it waits"
        roots = advance(kept, kept.next_at_s or 0, 5)


def test_a_crash_while_the_pair_is_replaced_is_finished_by_the_next_start(tmp_path: Path) -> None:
    old = load_or_make_roots(tmp_path, "cluster.local", NOW)
    announced = begin(old, new_root("cluster.local", NOW), 60, 1000.0)
    save_roots(tmp_path, announced)
    pair = {name: (tmp_path / name).read_bytes() for name in ("root-key.pem", "root-cert.pem")}
    signing = advance(announced, 1060.0, 5)
    save_roots(tmp_path, signing)
    state = json.loads((tmp_path / "rotation.json").read_text())
    pem = announced.successor
    assert pem is not None
    key = pem.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for torn in ({}, {"root-cert.pem"}, {"root-cert.pem", "root-key.pem"}):
        (tmp_path / "rotation.json").write_text(json.dumps(state | {"signs": True, "successor": [key, pem.root_pem]}))
        for name, data in pair.items():
            if name not in torn:
                (tmp_path / name).write_bytes(data)
        found = load_or_make_roots(tmp_path, "cluster.local", NOW)
        assert (found.phase, found.signer.root_pem) == (Phase.SIGNING, pem.root_pem)
        assert found.retiring == old.signer.certificate and found.bundle_pem == signing.bundle_pem


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "[" * 100_000,
        {"overlap_s": math.inf},
        {"since_s": None},
        {"retiring": 5},
        {"crossed": 5},
        {"successor": 5},
        {"successor": [5, 5]},
        {"successor": ["one"]},
        {"successor": 5, "signs": True},
    ],
)
def test_a_damaged_rotation_is_refused(tmp_path: Path, damage: Any) -> None:
    roots = load_or_make_roots(tmp_path, "cluster.local", NOW)
    save_roots(tmp_path, begin(roots, new_root("cluster.local", NOW), 60, 1000.0))
    path = tmp_path / "rotation.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ValueError, match=r"rotation\.json: no state of a rotation: .*: restore it, or remove it"):
        load_or_make_roots(tmp_path, "cluster.local", NOW)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="may be read by others"):
        load_or_make_roots(tmp_path, "cluster.local", NOW)


def test_serial_numbers_are_positive_in_sixteen_bytes() -> None:
    serials = {new_serial() for _ in range(100)}
    assert len(serials) == 100
    assert all(0 < serial < 2**127 for serial in serials)


def test_a_state_folder_has_one_user(tmp_path: Path) -> None:
    take_lock(tmp_path)
    with pytest.raises(ValueError, match=r"another weft-control \(pid \d+\) uses"):
        take_lock(tmp_path)
