"""An attacker in a pod of a lab, and the certificates it shows: signed by the lab's own root, or by somebody else."""

import base64
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from lab.process import popen
from tests.lab.mesh import OPTIONS
from tests.lab.puppet import Puppet
from tests.lab.world import World
from tests.ztunnel.world import Authority

H2 = ["h2"]
_TEXTS = "\n".join(Path(__file__).with_name(f"{name}.py").read_text() for name in ("link", "witness", "attacker"))
PROGRAM = "\n".join(line for line in _TEXTS.splitlines() if not line.startswith("from tests."))
ARGV = ("python3", "-u", "-c", PROGRAM)


def attacker_in(world: World, name: str, patient: bool = False) -> Puppet:
    """Does what tests.lab.attacker.Inside can do, in pod `shop/NAME`; `patient`: at the lowest priority."""
    argv = (*ARGV, "patient") if patient else ARGV
    return Puppet(popen(world.join(f"shop/{name}", argv), **OPTIONS))


def attacker_on(world: World, node: str) -> Puppet:
    """The same among a node's own processes."""
    return Puppet(world.on_node(node, ARGV, **OPTIONS))


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
