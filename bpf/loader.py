"""Has the redirect compiled, attached and pinned.

`python -m bpf.loader --bpffs DIR` is the child that compiles: LLVM costs it 130 MB and a third of a second, and the agent
keeps neither. What is left on the bpffs works without any process:

    DIR/version        symbolic link whose text is the hash of the sources
    DIR/maps/NAME      see layout.MAPS
    DIR/programs/NAME  see PROGRAMS
    DIR/hooks/NAME     links of the programs to the node's cgroup
    DIR/links/UID      sk_lookup links of enrolled pods (made by redirect.py)

The same sources are adopted as they are. Other sources take the place of the old programs link by link, each atomically;
maps of unchanged layout stay with their contents, and those that are made anew are filled before a program works with
them, so that connections do not notice.
"""

import argparse
import ctypes as ct
import errno
import fcntl
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpf import libbpf
from bpf.headers import find_headers
from bpf.layout import MAPS
from bpf.maps import ensure_maps, is_as_specified
from wire.cgroup import cgroup_id

_SOURCES = Path(__file__).parent
_HEADERS = ("redirect.h", "maps.h", "address.h", "excluded.h", "report.h", "dns.h")
_CODE = ("create.c", "connect.c", "peername.c", "dns.c", "sockops.c", "lookup.c")
_LOCAL_INCLUDE = re.compile(r'^#include "\w+\.h"$', re.MULTILINE)
_BPF_FS_MAGIC = 0xCAFE4A11
_TIMEOUT_S = 120.0

_libc = ct.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its kind and hook are the kernel's numbers (bpf_prog_type, bpf_attach_type)."""

    name: str
    kind: int
    hook: int


LOOKUP = Program("lookup", 30, 36)
CGROUP_PROGRAMS = (
    Program("create", 9, 2),
    Program("connect4", 18, 10),
    Program("connect6", 18, 11),
    Program("peer4", 18, 29),
    Program("peer6", 18, 30),
    Program("sendmsg4", 18, 14),
    Program("sendmsg6", 18, 15),
    Program("recvmsg4", 18, 19),
    Program("recvmsg6", 18, 20),
    Program("getsockopt", 25, 21),
    Program("sockops", 13, 3),
)
PROGRAMS = (*CGROUP_PROGRAMS, LOOKUP)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` found or did."""

    version: str
    adopted: bool
    """True: everything was there already."""
    new_maps: tuple[str, ...] = ()
    """Maps made anew, so empty: pods and settings must be written again when theirs are among them."""


def load(bpffs: Path, cgroup: Path, before_attach: Callable[[], None] = lambda: None) -> Loaded:
    """Have the redirect in place for all processes below `cgroup`, with its pins below `bpffs`.

    Blocks for about a second when it compiles. Mounts a bpffs at `bpffs` when none is there. `before_attach` is called when
    all is pinned and older programs, with the maps that they know, still do the work: to fill what was made anew.

    Raises: RuntimeError with the child's last words when it fails; OSError for a cgroup that is none.
    """
    version = source_version()
    if is_current(bpffs, cgroup, version):
        return Loaded(version, adopted=True)
    cgroup_id(cgroup)  # before anything is made: a wrong path is the likeliest mistake
    mount_bpffs(bpffs)
    with _locked(bpffs):
        if is_current(bpffs, cgroup, version):  # another process was quicker
            return Loaded(version, adopted=True)
        (bpffs / "version").unlink(missing_ok=True)
        made = ensure_maps(bpffs / "maps")
        for folder in ("programs", "hooks", "links"):
            (bpffs / folder).mkdir(mode=0o700, exist_ok=True)
        _compile_in_child(bpffs)
        before_attach()
        _attach(bpffs, cgroup)
        (bpffs / "version").symlink_to(version)
    return Loaded(version, adopted=False, new_maps=tuple(made))


def _compile_in_child(bpffs: Path) -> None:
    command = [sys.executable, "-m", "bpf.loader", "--bpffs", str(bpffs)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=_SOURCES.parent, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"loading the eBPF programs took longer than {_TIMEOUT_S:.0f} s and was given up") from error
    if child.returncode != 0:
        raise RuntimeError(f"loading the eBPF programs failed: {child.stderr.strip()[-4000:] or child.returncode}")


def source_version() -> str:
    """The hash of everything that decides what the programs do."""
    digest = hashlib.sha256()
    for name in (*_HEADERS, *_CODE):
        digest.update((_SOURCES / name).read_bytes())
    digest.update(repr(PROGRAMS).encode() + repr(MAPS).encode())
    return digest.hexdigest()


def is_current(bpffs: Path, cgroup: Path, version: str) -> bool:
    """Whether the programs of this version are attached to this very cgroup, with all their maps."""
    try:
        if os.readlink(bpffs / "version") != version:
            return False
        wanted = cgroup_id(cgroup)
        for program in CGROUP_PROGRAMS:
            with libbpf.open_pin(bpffs / "hooks" / program.name) as link:
                if libbpf.link_info(link.fd).target.cgroup.cgroup_id != wanted:
                    return False
        return all(is_as_specified(bpffs / "maps" / spec.name, spec) for spec in MAPS)
    except OSError:
        return False


def mount_bpffs(folder: Path) -> None:
    """Have a bpffs at `folder`: a folder on one, or a mount of its own.

    Raises: OSError when mounting fails.
    """
    if not folder.exists() and _is_bpffs(folder.parent):
        folder.mkdir(mode=0o700)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_bpffs(folder):
        return
    if _libc.mount(b"bpffs", os.fsencode(folder), b"bpf", 0, b"mode=0700") != 0:
        error = ct.get_errno()
        raise OSError(error, f"mounting a bpffs at {folder}: {os.strerror(error)}")


def _is_bpffs(folder: Path) -> bool:
    buffer = (ct.c_long * 32)()  # struct statfs begins with f_type
    return _libc.statfs(os.fsencode(folder), buffer) == 0 and buffer[0] == _BPF_FS_MAGIC


def source_text() -> str:
    """All files as the one text that bcc wants: it rewrites map accesses in the main file only."""
    return "#include <uapi/linux/bpf.h>\n#include <uapi/linux/in.h>\n#include <linux/net.h>\n" + "".join(
        _LOCAL_INCLUDE.sub("", (_SOURCES / name).read_text()) for name in (*_HEADERS, *_CODE)
    )


def compile_programs(maps_folder: Path) -> dict[str, int]:
    """Compile and load every program. Returns: descriptors by name, which live as long as this process."""
    headers = find_headers()
    os.environ["BCC_KERNEL_SOURCE"] = str(headers.source)
    from bcc import BPF  # LLVM: only ever in the child

    flags = [f'-DPINS="{maps_folder}"', "-Wno-macro-redefined", *headers.flags(platform.machine())]
    bpf = BPF(text=source_text().encode(), cflags=flags)
    return {
        program.name: bpf.load_func(f"weft_{program.name}".encode(), program.kind, attach_type=program.hook).fd
        for program in PROGRAMS
    }


def _attach(bpffs: Path, cgroup: Path) -> None:
    """Put the pinned programs in the place of what is attached: to the cgroup, then to the pods."""
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for program in CGROUP_PROGRAMS:
            with libbpf.open_pin(bpffs / "programs" / program.name) as loaded:
                _attach_to_cgroup(program, loaded.fd, bpffs / "hooks" / program.name, cgroup_fd)
    finally:
        os.close(cgroup_fd)
    with libbpf.open_pin(bpffs / "programs" / LOOKUP.name) as lookup:
        for path in (bpffs / "links").iterdir():
            with libbpf.open_pin(path) as link:
                try:
                    libbpf.update_link(link.fd, lookup.fd, f"pod link {path.name}")
                except OSError as error:
                    if error.errno != errno.ENOLINK:  # the pod is gone, and its pin goes when the agent takes it out
                        raise


def _attach_to_cgroup(program: Program, fd: int, path: Path, cgroup_fd: int) -> None:
    if path.exists():
        with libbpf.open_pin(path) as link:
            if libbpf.link_info(link.fd).target.cgroup.cgroup_id == os.fstat(cgroup_fd).st_ino:
                libbpf.update_link(link.fd, fd, f"hook {program.name}")
                return
        path.unlink()
    with libbpf.create_link(fd, cgroup_fd, program.hook, f"{program.name} to the node's cgroup") as link:
        libbpf.pin(link.fd, path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def main() -> int:
    """Run as the child; errors go to stderr."""
    parser = argparse.ArgumentParser(prog="python -m bpf.loader", description="Compile and pin weft's eBPF programs.")
    parser.add_argument("--bpffs", type=Path, required=True, help="where to pin; the maps are there already")
    bpffs = parser.parse_args().bpffs
    try:
        for name, fd in compile_programs(bpffs / "maps").items():
            libbpf.replace_pin(fd, bpffs / "programs" / name)
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # bcc raises plain Exceptions; what clang or the verifier said is on stderr already
        print(f"the eBPF programs did not load: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
