"""Other labs on this machine: two that share a part of their names would end each other's processes and remove their files."""

from collections.abc import Iterable
from pathlib import Path

from lab import cgroup
from lab.layout import Layout
from wire.cgroup import cgroup2_mount
from wire.places import Places, PlacesError


def labs() -> list[Places]:
    """The labs whose daemon or control plane runs, by what their environment says."""
    found = []
    for folder in sorted(cgroup2_mount().iterdir()):
        own = Layout(Places(Path("/"), Path("/"), folder.name))
        for pid in (*cgroup.processes(own.lab_cgroup), *cgroup.processes(own.control_cgroup)):
            try:
                pairs = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                found.append(Places.from_environment(dict(pair.split("=", 1) for pair in pairs if "=" in pair)))
            except (OSError, PlacesError):
                continue  # it has ended meanwhile
    return list(dict.fromkeys(found))


def clash(mine: Places, others: Iterable[Places]) -> str:
    """What keeps a lab of these places from being touched, and the mend; empty: nobody shares a part of them. Pure."""
    for other in others:
        pairs = {
            "WEFT_PREFIX": (mine.prefix, other.prefix),
            "WEFT_RUN_DIR": (mine.run, other.run),
            "WEFT_STATE_DIR": (mine.state, other.state),
        }
        shared = [name for name, (one, another) in pairs.items() if one == another]
        if 0 < len(shared) < len(pairs):
            named = " ".join(f"{name}={another}" for name, (_, another) in pairs.items())
            return f"another lab is up ({named}): for one beside it set {' and '.join(shared)} too; for that one set all three"
    return ""
