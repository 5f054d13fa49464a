"""What is a lab's own. Users choose its prefix and folders, so what is there may be somebody else's: nothing is made over
what no lab made, and nothing of it is removed.

A folder proves itself by what a lab alone puts there, before all else and gone after all else; the cgroup by the daemon's below
it; a namespace by the cgroup of whom it is for, which is made before it and removed after it.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lab import cgroup, netns
from lab.layout import Layout
from lab.ledger import Ledger, load, save

_POLL_S = 0.05


class ClaimError(RuntimeError):
    """Something is not this lab's to touch: what, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One of the two folders of a lab, of which it has only some entries."""

    variable: str
    path: Path
    entries: tuple[str, ...]
    """In the order of their removal."""
    proof: Path

    @property
    def is_own(self) -> bool:
        """Whether its entries are a lab's."""
        return self.proof.exists()

    def taken(self) -> list[Path]:
        """The entries that are there, but for empty folders."""
        present = [self.path / name for name in self.entries if os.path.lexists(self.path / name)]
        return [one for one in present if not one.is_dir() or any(one.iterdir())]


def folders(layout: Layout) -> tuple[Folder, Folder]:
    """The run folder and the state folder."""
    places = layout.places
    return (
        Folder("WEFT_RUN_DIR", places.run, ("lab.sock", "control.sock", "nodes", "lab"), layout.programs),
        Folder("WEFT_STATE_DIR", places.state, ("nodes", "control", "lab"), layout.ledger),
    )


def owns_cgroup(layout: Layout) -> bool:
    """Whether the cgroup of the lab's name is a lab's."""
    return layout.lab_cgroup.is_dir()


def settled(layout: Layout) -> Layout:
    """The layout with the cluster domain of the lab that is there: its pods and proxies were told that one.

    Raises: ClaimError where another one is asked for, and for a damaged ledger; OSError.
    """
    try:
        domain = load(layout.ledger).domain or layout.domain
    except ValueError as error:
        raise ClaimError(str(error)) from error
    if layout.names_domain and domain != layout.domain:
        mend = f"set WEFT_CLUSTER_DOMAIN to {domain} or not at all, or remove the lab with: weft lab down"
        raise ClaimError(f"the cluster domain of this lab is {domain}, and {layout.domain} is asked for: {mend}")
    return replace(layout, domain=domain)


def claim(layout: Layout) -> Layout:
    """Make the folders and the cgroup this lab's; they may be already. Returns its `settled` layout.

    Raises: ClaimError where one of them is somebody else's, and nothing is made then; OSError.
    """
    for folder in folders(layout):
        if not folder.is_own and (taken := folder.taken()):
            raise ClaimError(f"{taken[0]} is there, and no lab made it: set {folder.variable} to a folder of the lab's own")
    if not owns_cgroup(layout) and (cgroup.populated(layout.cgroup) or cgroup.children(layout.cgroup)):
        raise ClaimError(f"{layout.cgroup} is there, and no lab made it: set WEFT_PREFIX to another name")
    layout = settled(layout)
    cgroup.create(layout.lab_cgroup)
    layout.programs.mkdir(parents=True, exist_ok=True)
    if not layout.ledger.exists():
        save(Ledger(domain=layout.domain), layout.ledger)
    return layout


def require_own_namespace(name: str, owner: Path) -> None:
    """Go on unless a namespace of this name is there that is not `owner`'s, a cgroup's. Raises: ClaimError."""
    if netns.exists(name) and not owner.is_dir():
        raise ClaimError(
            f"there is a network namespace {name}, and this lab did not make it: remove it with: ip netns del {name}, "
            "or set WEFT_PREFIX to another name"
        )


@contextmanager
def held(name: str, patience_s: float) -> Iterator[bool]:
    """Have a name to oneself in the body, among all who ask for it so: False when somebody has it for longer than that.

    Nothing of it stays, whatever ends its holder. Raises: OSError.
    """
    until = time.monotonic() + patience_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        while True:
            try:
                holder.bind(f"\0weft-lab:{name}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            if time.monotonic() >= until:
                yield False
                return
            time.sleep(_POLL_S)
        yield True
