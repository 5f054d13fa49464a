"""Named network namespaces: made, found, set up and removed, always from outside.

No link, address or rule ever comes to be in the caller's own namespace: veths are made inside the lab's, with their far end
placed straight into another one.
"""

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lab.layout import netns_path
from wire.netns import entered, open_home

_TIMEOUT_S = 60
_SYSCTL = Path("/proc/sys/net")


def exists(name: str) -> bool:
    """Whether a namespace of this name is there, and is one (a leftover file after a crash is not)."""
    path = netns_path(name)
    try:
        return path.exists() and os.stat(path).st_dev != os.stat(path.parent).st_dev
    except FileNotFoundError:
        return False


def create(name: str) -> None:
    """Make an empty namespace of this name, instead of a leftover one.

    Raises: RuntimeError with the words of `ip`.
    """
    if netns_path(name).exists():
        delete(name)
    run(["ip", "netns", "add", name])


def delete(name: str) -> None:
    """Remove a name; the namespace goes with its last process and socket. None is fine.

    Raises: RuntimeError with the words of `ip`.
    """
    path = netns_path(name)
    if not path.exists():
        return
    if exists(name):
        run(["ip", "netns", "del", name])
    else:
        path.unlink(missing_ok=True)


def batch(name: str, commands: Iterable[str]) -> None:
    """Run `ip` commands (without the leading `ip`) inside a namespace, stopping at the first that fails.

    Raises: RuntimeError with the words of `ip`.
    """
    run(["ip", "-n", name, "-batch", "-"], "\n".join(commands) + "\n")


def names(name: str) -> set[str]:
    """The interfaces of a namespace."""
    fields = (line.split() for line in run(["ip", "-n", name, "-br", "link"]).splitlines())
    return {words[0].split("@")[0] for words in fields if words}


def inode(name: str) -> int:
    """The number that tells a namespace from a later one of the same name."""
    return netns_path(name).stat().st_ino


def sysctls(name: str, settings: Mapping[str, str]) -> None:
    """Write settings below /proc/sys/net of a namespace; a leading `?` marks one that this kernel may lack.

    Raises: RuntimeError naming the setting that could not be written.
    """
    home = open_home()
    target = os.open(netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with entered(target, home):
            for key, value in settings.items():
                path = _SYSCTL / key.lstrip("?")
                if key.startswith("?") and not path.exists():
                    continue
                try:
                    path.write_text(value)
                except OSError as error:
                    raise RuntimeError(f"cannot set net/{key}={value} in namespace {name}: {error.strerror}") from error
    finally:
        os.close(target)
        os.close(home)


def nft(name: str, rules: str) -> None:
    """Load nftables rules inside a namespace, all or none.

    Raises: RuntimeError with the words of `nft`.
    """
    run(["nsenter", f"--net={netns_path(name)}", "nft", "-f", "-"], rules)


def run(argv: Sequence[str], text: str = "") -> str:
    """Run a command to its end and return what it printed.

    Raises: RuntimeError with what it said when it failed.
    """
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise RuntimeError(f"{argv[0]} is not installed: run ./setup.sh") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(argv)} did not end within {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
