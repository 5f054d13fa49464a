"""What a container is as a process of this machine: arguments, environment, user, and whether it can be asked to end. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.manifests import Container, Pod, Probe

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SIGTERM_BIT = 1 << 14


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the lab knows of a pod."""

    node: str
    addresses: tuple[str, ...]
    """v4 first."""


@dataclass(frozen=True, slots=True)
class Command:
    """One container, ready to be launched."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    volumes: tuple[tuple[str, str, bool], ...]
    """(volume name, path in the container, read-only)."""
    probe: Probe | None


def command(pod: Pod, container: Container, facts: Facts) -> Command:
    """Work out how a container is run."""
    env = {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOSTNAME": pod.name,
        "POD_IP": (*facts.addresses, "")[0],
        **container.environment(_fields(pod, facts)),
    }
    uid = _first(container.run_as_user, pod.spec.run_as_user, 0)
    return Command(
        name=container.name,
        argv=tuple(container.argv(env)),
        env=env,
        cwd=container.working_directory or "/",
        uid=uid,
        gid=_first(container.run_as_group, pod.spec.run_as_group, uid),
        volumes=tuple((mount.name, mount.path, mount.read_only) for mount in container.mounts),
        probe=container.readiness,
    )


def _first(*choices: int | None) -> int:
    return next(choice for choice in choices if choice is not None)


def _fields(pod: Pod, facts: Facts) -> Mapping[str, str]:
    """What POD_FIELDS of mesh.manifests refer to."""
    return {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "spec.nodeName": facts.node,
        "spec.serviceAccountName": pod.spec.service_account,
        "status.podIP": (*facts.addresses, "")[0],
        "status.podIPs": ",".join(facts.addresses),
    }


def catches_sigterm(status: str) -> bool:
    """Whether a process has a handler for SIGTERM, by its /proc/PID/status.

    A container's first process is its namespace's process 1: without a handler the kernel drops the signal, and waiting
    for an end that cannot come would only delay the lab.
    """
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) & _SIGTERM_BIT)
