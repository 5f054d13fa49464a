"""A pod's namespace is found by its path and, when that is gone, through its processes; a look-alike is not taken for it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.namespaces import find, find_again, is_alive
from agent.pod import PodRequest
from tests.descriptors import few_descriptors, open_descriptors
from wire.cgroup import cgroup2_mount
from wire.netns import open_home

pytestmark = pytest.mark.kernel

NAME = f"weft-test-ns-{os.getpid()}"
PATH = f"/run/netns/{NAME}"


@pytest.fixture
def home() -> Iterator[int]:
    fd = open_home()
    yield fd
    os.close(fd)


@contextmanager
def namespace() -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True, stderr=subprocess.DEVNULL) if os.path.exists(PATH) else None


@pytest.fixture
def cgroup() -> Iterator[Path]:
    folder = cgroup2_mount() / NAME / "pod"
    folder.mkdir(parents=True)
    yield folder
    folder.rmdir()
    folder.parent.rmdir()


def request(**changes: str) -> PodRequest:
    return replace(PodRequest("u-1", "demo", "web", "web", PATH), **changes)


def test_found_by_path_and_gone_with_it(home: int) -> None:
    with namespace():
        pod, fd = find(request(), home)
        assert is_alive(pod)
        again = find_again(pod, home)
        assert again is not None and os.fstat(again).st_ino == pod.netns_id[1]
        os.close(again)
        assert find_again(replace(pod, boot_id="another"), home) is None
    assert not is_alive(pod)
    assert find_again(pod, home) is None
    os.close(fd)


def test_found_through_its_processes_when_the_path_is_gone(home: int, cgroup: Path) -> None:
    with namespace():
        process = subprocess.Popen(["ip", "netns", "exec", NAME, "sleep", "60"])
        try:
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            pod, fd = find(request(cgroup=str(cgroup.parent)), home)
            while os.stat(f"/proc/{process.pid}/ns/net").st_ino != pod.netns_id[1]:
                os.sched_yield()  # until `ip` has entered the namespace
            subprocess.run(["ip", "netns", "del", NAME], check=True)
            again = find_again(pod, home)
            assert again is not None and is_alive(pod)
            os.close(again)
        finally:
            process.kill()
            process.wait()
    assert not is_alive(pod)
    os.close(fd)


def test_a_pod_is_not_taken_for_gone_when_no_descriptors_are_left(home: int, cgroup: Path) -> None:
    """An agent that cannot open anything must not take pods out of the mesh."""
    with namespace():
        pod, fd = find(request(cgroup=str(cgroup.parent)), home)
        with few_descriptors(0), pytest.raises(OSError, match="Too many open files"):
            find_again(pod, home)
    with few_descriptors(0):
        assert is_alive(pod), "its processes cannot be asked"
        with pytest.raises(OSError, match="Too many open files"):
            find_again(pod, home)
    assert not is_alive(pod) and find_again(pod, home) is None
    os.close(fd)


def test_what_cannot_be_looked_at_is_let_go_again(home: int) -> None:
    with namespace():
        pod, fd = find(request(), home)
        os.close(fd)
        for look in (lambda: find(request(), home), lambda: find_again(pod, home)):
            before = open_descriptors()
            with (
                few_descriptors(1),
                pytest.raises(OSError, match="Too many open files"),
            ):  # the namespace's, and then no socket's
                look()
            assert open_descriptors() <= before


def test_same_path_with_another_namespace_is_another_place(home: int) -> None:
    with namespace():
        pod, fd = find(request(), home)
    with namespace():
        assert find_again(pod, home) is None
    os.close(fd)  # not before: the kernel would give its number to the other one


@pytest.mark.parametrize("path", ["/run/netns/none", "/etc/hostname", "/proc/self/ns/mnt", "/dev/null", "/"])
def test_what_is_no_network_namespace_is_refused(home: int, path: str) -> None:
    with pytest.raises(ValueError, match="is not a network namespace"):
        find(request(netns=path), home)


def test_the_nodes_own_namespace_is_refused(home: int) -> None:
    with pytest.raises(ValueError, match="host network"):
        find(request(netns="/proc/self/ns/net"), home)
