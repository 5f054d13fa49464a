"""What the agent is told at its start."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mesh.exclusions import Exclusions, read_ports, read_ranges
from wire.grpc_tls import host_and_port
from wire.places import NodePlaces, Places, check_node_name

METRICS_PORT = 15090
CONTROL_PORT = 15012
_EXCLUSIONS = {
    "outbound-ports": "ports that pods dial past the mesh, as 3306,5432",
    "outbound-ranges": "addresses that pods dial past the mesh, as 10.9.0.0/16,fd09::/16",
    "inbound-ports": "ports of pods that are dialled past the mesh, as 9100",
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Settings:
    """One node's agent."""

    node: str
    places: NodePlaces
    cgroup: Path
    """Programs attach here: the node's cgroup."""
    pods_cgroup: Path
    """Parent of all pods' cgroups."""
    bpffs: Path
    control: str
    """`host:port`; empty: no control plane, flows carry addresses only."""
    root: Path
    token: Path
    metrics_port: int
    cluster_id: str
    network: str
    exclusions: Exclusions
    """From the capture of every pod of this node."""
    uninstall: bool


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Read the command line; ends the process with a sentence for what is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        check_node_name(given.node, f"--node {given.node!r}")
        if not 0 <= given.metrics_port <= 65535:
            raise ValueError(f"--metrics-port {given.metrics_port}: not a port from 0 to 65535")
        _check_names()
        places = Places.from_environment().node(given.node)
        control = host_and_port("--control", given.control, CONTROL_PORT) if given.control else ""
        exclusions = Exclusions(
            _list("outbound-ports", given.exclude_outbound_ports, read_ports),
            _list("outbound-ranges", given.exclude_outbound_ranges, read_ranges),
            _list("inbound-ports", given.exclude_inbound_ports, read_ports),
        )
    except ValueError as error:
        parser.error(str(error))
    return Settings(
        node=given.node,
        places=places,
        cgroup=given.cgroup,
        pods_cgroup=given.pods_cgroup or given.cgroup / "pods",
        bpffs=given.bpffs or places.bpffs,
        control=control,
        root=given.root or places.root,
        token=given.token or places.token,
        metrics_port=given.metrics_port,
        cluster_id=given.cluster_id,
        network=given.network,
        exclusions=exclusions,
        uninstall=given.uninstall,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agent",
        description="weft's node agent: enrols pods, serves ZDS to the node's proxy, and the node's flows to Hubble's clients.",
        epilog="Ends on SIGTERM and leaves the redirect in place: pods stay in the mesh, and the next agent takes over.",
    )
    parser.add_argument("--node", required=True, help="name of this node")
    parser.add_argument("--cgroup", required=True, type=Path, help="the node's cgroup v2 folder; programs attach there")
    parser.add_argument("--pods-cgroup", type=Path, help="parent of all pods' cgroups (default: CGROUP/pods)")
    parser.add_argument("--bpffs", type=Path, help="where programs and maps are pinned (default: in the node's run folder)")
    parser.add_argument("--control", default="", help="HOST:PORT of weft-control")
    parser.add_argument("--root", type=Path, help="PEM of what signs control's certificate")
    parser.add_argument("--token", type=Path, help="file with the node's credential for control")
    parser.add_argument(
        "--metrics-port", type=int, default=METRICS_PORT, help=f"Prometheus metrics; 0 for none ({METRICS_PORT})"
    )
    parser.add_argument("--cluster-id", default="Kubernetes", help="as control's --cluster (Kubernetes)")
    parser.add_argument("--network", default="", help="name of the network that this node's pods are on")
    for name, what in _EXCLUSIONS.items():
        parser.add_argument(f"--exclude-{name}", metavar="LIST", help=f"{what}, for every pod ({_variable(name)})")
    parser.add_argument("--uninstall", action="store_true", help="withdraw every pod, take the redirect away, and end")
    return parser


def _variable(name: str) -> str:
    return f"WEFT_EXCLUDE_{name.upper().replace('-', '_')}"


def _check_names() -> None:
    """Refuse a list whose name is misspelt: what it names would be captured all the same."""
    known = {_variable(name) for name in _EXCLUSIONS}
    for name in sorted(os.environ.keys() - known):
        if name.startswith("WEFT_EXCLUDE_"):
            raise ValueError(f"{name}: no such list: write one of {', '.join(sorted(known))}")


def _list(name: str, given: str | None, read: Callable[[str], _T]) -> _T:
    """The flag's list, else the environment's. Raises: ValueError that names where it was given."""
    where = f"--exclude-{name}" if given is not None else _variable(name)
    try:
        return read(os.environ.get(where, "") if given is None else given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
