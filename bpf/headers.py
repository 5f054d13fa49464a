"""Finds kernel headers for bcc.

The programs touch UAPI structs only, so headers of any 6.x kernel do, not just the running one's. Debian splits them in two
trees: one of the architecture (generated files, configuration) and a common one (sources). bcc understands the split only
below /lib/modules/<running kernel>, so it is pointed at the common tree and given the other as include paths.
"""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_PACKAGES = {"x86_64": "linux-headers-amd64", "aarch64": "linux-headers-arm64"}
_INCLUDED_MAKEFILE = re.compile(r"^include\s+(/\S+)/Makefile\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Headers:
    """Where headers are."""

    source: Path
    """The tree with include/linux."""
    build: Path
    """The tree with include/generated; often the same."""

    def flags(self, machine: str) -> list[str]:
        """What the compiler needs beside BCC_KERNEL_SOURCE=source."""
        if self.build == self.source:
            return []
        arch = _ARCHITECTURES[machine]
        trees = (f"arch/{arch}/include/generated", "include", f"arch/{arch}/include/generated/uapi", "include/generated/uapi")
        return [f"-I{self.build / tree}" for tree in trees]


def find_headers(
    environment: Mapping[str, str] = os.environ,
    release: str = platform.release(),
    modules: Path = Path("/lib/modules"),
    sources: Path = Path("/usr/src"),
) -> Headers:
    """Find headers: BCC_KERNEL_SOURCE, then the running kernel's, then the newest installed linux-headers-*.

    Raises: RuntimeError naming the package to install.
    """
    named = environment.get("BCC_KERNEL_SOURCE")
    if named:
        found = _headers_at(Path(named))
        if found is None:
            raise RuntimeError(
                f"BCC_KERNEL_SOURCE={named} holds no kernel headers: name a folder with include/linux, or unset it"
            )
        return found
    for candidate in _candidates(release, modules, sources):
        found = _headers_at(candidate)
        if found is not None:
            return found
    package = _PACKAGES.get(platform.machine(), "linux-headers-" + platform.machine())
    raise RuntimeError(f"no kernel headers found for compiling the eBPF programs: apt-get install {package}")


def _candidates(release: str, modules: Path, sources: Path) -> Iterator[Path]:
    yield modules / release / "build"
    installed = (path for path in sources.glob("linux-headers-*") if not path.name.endswith("-common"))
    yield from sorted(installed, key=_version, reverse=True)


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _headers_at(folder: Path) -> Headers | None:
    build = folder.resolve()
    for source in (build, *_split_sources(build)):
        generated = build / "include" / "generated" / "autoconf.h"
        if (source / "include" / "linux" / "kconfig.h").is_file() and generated.is_file():
            return Headers(source, build)
    return None


def _split_sources(build: Path) -> Iterator[Path]:
    """Where the sources of an architecture's tree are: its Makefile includes theirs."""
    try:
        makefile = (build / "Makefile").read_text()
    except OSError:
        return
    for match in _INCLUDED_MAKEFILE.finditer(makefile):
        yield Path(match.group(1))
