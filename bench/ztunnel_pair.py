"""A pair of Istio's own ztunnels between two pods, as the peer to measure beside: whatever binary ZTUNNEL_BIN names.

Each is in dedicated mode for one pod, knows the mesh from a file, and signs for itself (FAKE_CA). What the client pod sends to
the server goes to its ztunnel by one nft rule in the client's own network namespace; the rest is ztunnel's own. It has as many
worker threads as weft has workers, and logs errors alone: its access log would cost it more than weft's costs weft.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.key_exchange import Group
from bench.pair import start

OUTBOUND_PORT = 15001
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Member:
    """One pod of the pair."""

    namespace: str
    name: str
    """Its service account has the same name."""
    address: str
    netns: Path


def ztunnel_binary() -> Path | None:
    """What ZTUNNEL_BIN names; None: nothing. Raises: RuntimeError when it is no program."""
    named = os.environ.get("ZTUNNEL_BIN")
    if not named:
        return None
    path = Path(named).resolve()
    if not os.access(path, os.X_OK):
        raise RuntimeError(f"ZTUNNEL_BIN={named}: no program to run: name a release build of ztunnel, or leave it out")
    return path


def mesh_file(members: tuple[Member, ...]) -> str:
    """The mesh as ztunnel's local configuration (YAML, of which JSON is a part)."""
    workloads = [
        {
            "uid": f"Kubernetes//Pod/{one.namespace}/{one.name}",
            "name": one.name,
            "namespace": one.namespace,
            "serviceAccount": one.name,
            "workloadIps": [one.address],
            "protocol": "HBONE",
            "node": one.name,
            "network": "",
            "services": {},
        }
        for one in members
    ]
    return json.dumps({"workloads": workloads, "services": [], "policies": []})


def environment(mesh: Path, member: Member, workers: int, group: Group) -> dict[str, str]:
    """What one ztunnel is told; it inherits nothing else."""
    return {
        "PATH": os.defpath,
        "FAKE_CA": "true",
        "XDS_ADDRESS": "",
        "LOCAL_XDS_PATH": str(mesh),
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": f"{member.namespace}/{member.name}/{member.name}",
        "ENABLE_ORIG_SRC": "false",
        "ZTUNNEL_WORKER_THREADS": str(workers),
        "RUST_LOG": "error",
        # Its one switch for groups; without it a pair agrees on X25519.
        **({"COMPLIANCE_POLICY": "pqc"} if group == "X25519MLKEM768" else {}),
    }


def redirect(server: str, port: int) -> str:
    """The nft rule of the client's namespace. The proxy itself dials 15008, which passes."""
    return f"""table ip weft-bench {{
    chain output {{
        type nat hook output priority -100
        ip daddr {server} tcp dport {port} redirect to :{OUTBOUND_PORT}
    }}
}}
"""


@contextmanager
def running(
    binary: Path, folder: Path, client: Member, server: Member, port: int, workers: int, group: Group
) -> Iterator[list[int]]:
    """Run a pair for the body; gives the pids of client and server. The rule goes with the pod's namespace.

    Raises: RuntimeError with nft's words.
    """
    mesh = folder / "mesh.yaml"
    mesh.write_text(mesh_file((client, server)))
    nft = ["nsenter", f"--net={client.netns}", "--", "nft", "-f", "-"]
    done = subprocess.run(nft, input=redirect(server.address, port), capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"nft in {client.netns}: {done.stderr.strip()}")
    with ExitStack() as stack:
        yield [
            start(stack, one.netns, [str(binary)], folder / f"{one.name}.log", environment(mesh, one, workers, group))
            for one in (client, server)
        ]
