"""A node under attack: the attacker's pod, and all that must not notice."""

from functools import cached_property
from typing import Any

from lab.process import popen
from tests.lab import puppet
from tests.lab.attacks import Attack, connect, goaway_code
from tests.lab.mesh import ECHO_PORT, NODES, OPTIONS, Mesh, authentication, pod
from tests.lab.papers import LabAuthority, attacker_in, data, papers, text
from tests.lab.puppet import Puppet
from tests.lab.world import eventually
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, HEADERS, frame

HBONE, DEAF_PORT, ATTACKED_PORT, NOBODYS_PORT = 15008, 7001, 7002, 7003
"""Attackers' streams lead to an application of their own: what they do to one that they may reach is not the proxy's doing."""
_OUTSIDE = ", istio.io/dataplane-mode: none"
TOPOLOGY = (
    NODES
    + pod("client", "a")
    + pod("attacker", "a", _OUTSIDE)
    + pod("witness", "a", _OUTSIDE)
    + pod("far", "b")
    + authentication("STRICT")
)


class Victim:
    """The lab under attack, and all that must not notice."""

    def __init__(self, mesh: Mesh, patient: bool = False) -> None:
        """`patient`: the attacker gets the CPU only when nobody else wants it."""
        self.mesh, self._patient = mesh, patient
        self.authority = LabAuthority(mesh)
        self.address = mesh.address("far")
        self.attacker, self.witness = attacker_in(mesh, "attacker", patient), attacker_in(mesh, "witness")
        self._attacked = Puppet(popen(mesh.join("shop/far", puppet.ARGV), **OPTIONS))
        self._attacked.echo(ATTACKED_PORT)
        self.client = mesh.puppet("client")
        self.block = self.connect(ECHO_PORT)
        self.papers = self._papers("attacker")
        self._load: int
        self._watch: int

    def _papers(self, name: str) -> dict[str, Any]:
        return papers(self.authority, f"spiffe://cluster.local/ns/shop/sa/{name}")

    def connect(self, port: int) -> bytes:
        """A request that the victim accepts."""
        return connect(f"{self.address}:{port}")

    def open_stream(self) -> bytes:
        """The frame that begins one."""
        return frame(HEADERS, END_HEADERS, 1, self.connect(ATTACKED_PORT))

    @cached_property
    def neighbour(self) -> Puppet:
        """A hostile pod of the victim's own node, where the topology has one."""
        return attacker_in(self.mesh, "neighbour", self._patient)

    @property
    def node(self) -> str:
        """The address of its node."""
        return str(next(one for one in self.mesh.status()["nodes"] if one["name"] == "b")["addresses"][0])

    def proxy(self) -> list[int]:
        """The processes of the node's proxy."""
        return self.mesh.processes("b", "ztunnel")

    def begin(self) -> None:
        """Let the good ones work."""
        opening, block = text(CLIENT_OPENING), text(self.block)
        self._watch = self.witness.do("watch", self.address, HBONE, self._papers("witness"), opening, block)
        self._load = self.client.do("steady", self.address, ECHO_PORT, "ping")
        self.past(5)

    def lap(self) -> dict[str, list[float]]:
        """What the honest peer's streams and connections took since it was last asked, in milliseconds."""
        return dict(self.witness.do("lap", self._watch))

    def rest(self, seconds: float) -> None:
        """Let time pass for the good ones."""
        self.witness.do("rest", seconds)

    def _done(self) -> dict[str, int]:
        mesh_peers, honest = self.client.do("progress", self._load), self.witness.do("noticed", self._watch)
        failed = mesh_peers["failed"] + honest["failed"]
        return {**{kind: mesh_peers[kind] for kind in ("fresh", "kept")}, "streams": honest["streams"], "failed": failed}

    def past(self, count: int) -> None:
        """Wait until the good ones have done some more."""
        before = self._done()

        def more() -> bool:
            now = self._done()
            return min(now[kind] - before[kind] for kind in ("fresh", "kept", "streams")) >= count or now["failed"] > 0

        eventually(more)

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the good ones saw: those of the mesh, and the honest peer."""
        return self.client.do("halt", self._load), self.witness.do("verdict", self._watch)

    def attack(self, attack: bytes, repeat: int = 1, read: bool = True) -> dict[str, Any]:
        """Say CLIENT_OPENING and the attack, `repeat` times: how it ended, with the code of GOAWAY."""
        shown, opening = self.papers, CLIENT_OPENING
        if repeat == 1:
            fate = self.attacker.do("speak", self.address, HBONE, shown, text(opening + attack), 1, read)
        else:
            number = self.attacker.do("open", self.address, HBONE, shown, text(opening))
            fate = self.attacker.do("insist", number, text(attack), repeat, read)
        assert fate["end"] in ("end", "reset"), fate
        return {**fate, "code": goaway_code(data(fate["said"]))}

    def besiege(self, attack: Attack, seconds: float, at_once: int = 1) -> dict[str, Any]:
        """Come back with the attack as soon as its connection is lost: ends and codes, by how many, and the longest life."""
        opening = text((CLIENT_OPENING if attack.opening else b"") + attack.begin)
        words = [text(one) for one in attack.words]
        shown = self.papers if attack.tls else None
        call = ("besiege", self.address, HBONE, shown, opening, words, seconds, at_once, attack.repeat, attack.read)
        return dict(self.attacker.do(*call, timeout_s=seconds + 60))

    def told(self, fate: dict[str, Any], words: str) -> None:
        """An operator is told what became of that very attacker."""
        self.mesh.await_flow(words, "--from-ip", self.mesh.address("attacker"), "--from-port", str(fate["port"]))

    def end(self) -> None:
        """Let attackers, witness and the attacked application go."""
        for one in (self.attacker, self.witness, self._attacked, self.__dict__.get("neighbour")):
            if one is not None:
                one.end()
