"""A lab with two kinds of proxy under weft's agents and control plane: weft's own on node a, Istio's ztunnel on node b.

Each node has a client, a server and a pod outside of the mesh; every service account is named as its pod.
"""

import json
import subprocess
from typing import Any

from lab.proxy import ANNOTATION
from tests.lab.mesh import ECHO_PORT, Mesh, authentication, pod, service
from tests.lab.world import eventually

__all__ = [
    "CROSSINGS",
    "DRAIN_S",
    "ECHO_PORT",
    "OTHER_PORT",
    "VERSIONS",
    "CrossMesh",
    "authentication",
    "authorization",
    "node",
]

OTHER_PORT = 7001
DRAIN_S = 5
"""How long either proxy lets open connections go on once it was told to end; weft's own default."""
VERSIONS = (4, 6)
CROSSINGS = (("client-a", "server-b"), ("client-b", "server-a"))
"""From weft's proxy to Istio's, and from Istio's to weft's."""
NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
"""


def node(name: str, command: str = "") -> str:
    """A Node; with a command it runs in place of weft's own proxy."""
    annotations = json.dumps({ANNOTATION: command} if command else {})
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {annotations}}}\n---\n"


def pods() -> str:
    """Per node a client, a server with a service, and an outsider."""
    return "".join(
        pod(f"client-{one}", one)
        + pod(f"server-{one}", one, ", role: server")
        + service(f"server-{one}")
        + pod(f"outsider-{one}", one, ", istio.io/dataplane-mode: none")
        for one in "ab"
    )


def authorization(name: str, spec: str) -> str:
    """An AuthorizationPolicy of the namespace."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {spec}
---
"""


class CrossMesh(Mesh):
    """The running lab."""

    def __init__(self, ztunnel: str) -> None:
        self.ztunnel = ztunnel
        self.command = f"env CONNECTION_TERMINATION_DEADLINE={DRAIN_S}s {ztunnel}"
        super().__init__(node("a") + node("b", self.command) + NAMESPACE + pods())

    def serve(self) -> None:
        """Both servers and both outsiders echo, on two ports."""
        for name in ("server-a", "server-b", "outsider-a", "outsider-b"):
            for port in (ECHO_PORT, OTHER_PORT):
                self.puppet(name).echo(port)

    def config_dump(self, of: str) -> dict[str, Any]:
        """What a node's proxy says of itself on port 15000, Istio's or weft's own."""
        dump: dict[str, Any] = json.loads(self.fetch(of, 15000, "/config_dump"))
        return dump

    def fetch(self, of: str, port: int, path: str) -> str:
        """What a node's proxy answers on one of its own ports."""
        with self.on_node(of, ["curl", "-sSf", "-m", "5", f"http://127.0.0.1:{port}{path}"], **_PIPES) as process:
            out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        return str(out)

    def new_lines(self, of: str) -> "AccessLog":
        """The access log of a node's proxy from here on."""
        return AccessLog(self, of)


_PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


class AccessLog:
    """The lines that a proxy's access log grows by."""

    def __init__(self, mesh: CrossMesh, of: str) -> None:
        self._path = mesh.log_path(f"{of}/ztunnel")
        self._from = self._path.stat().st_size

    def lines(self) -> list[str]:
        """What has come by now."""
        with self._path.open("rb") as file:
            file.seek(self._from)
            text = file.read().decode(errors="replace")
        return [line for line in text.splitlines() if "\taccess\t" in line]

    def find(self, *words: str) -> str:
        """A new line with all of these words. Raises: AssertionError when none comes."""

        def look() -> str:
            found = [line for line in self.lines() if all(word in line for word in words)]
            assert found, f"no line with {words} among {self.lines()[-10:]}"
            return found[-1]

        return eventually(look)
