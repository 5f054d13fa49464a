"""Certificates that a lab's own root has signed, or somebody else's: what attackers in its pods show."""

import base64
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from lab.world import World
from tests.ztunnel.world import Authority

H2 = ["h2"]


class LabAuthority(Authority):
    """The root of a running lab: control keeps its key on disk, and whoever is root may borrow it."""

    def __init__(self, world: World) -> None:
        folder = world.layout.places.control_state
        key: Any = load_pem_private_key((folder / "root-key.pem").read_bytes(), None)
        self.key = key
        self.pem = (folder / "root-cert.pem").read_bytes()
        self.certificate = x509.load_pem_x509_certificate(self.pem)
        self.name = self.certificate.subject


class Forger(Authority):
    """Signs in another's name with a key of its own."""

    def __init__(self, model: Authority) -> None:
        super().__init__()
        self.name = model.name


def papers(authority: Authority, *uris: str, **how: Any) -> dict[str, Any]:
    """Chain and key for the attacker; see Authority.issue."""
    chain, key = authority.issue(*uris, **how)
    return {"chain": chain.decode(), "key": key.decode(), "alpn": H2}


def text(data: bytes) -> str:
    """Bytes as they travel to an attacker."""
    return base64.b64encode(data).decode()


def data(reply: str) -> bytes:
    """Bytes as they come back."""
    return base64.b64decode(reply)
