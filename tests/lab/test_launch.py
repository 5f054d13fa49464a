import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.launch import Launch, _become, end
from lab.layout import SOURCE_ROOT
from lab.rootfs import Root
from ztunnel.pprof import parse

ROOT = Root("/scratch", ("/a",), (("/h", "/etc/hosts"),), (("/v", "/data", True),), "x:x:1:1::/:/bin/sh")


@pytest.mark.unit
@pytest.mark.parametrize("root", [None, ROOT])
def test_an_order_comes_back_from_json(root: Root | None) -> None:
    launch = Launch(("a", "b"), "/cgroup", "/netns", {"X": "1"}, "/w", "/log", root, 7, "host", 5, 6, True, "/image", ("/run",))
    assert Launch.from_json(launch.to_json()) == launch


@pytest.mark.unit
def test_a_launcher_that_was_given_up_becomes_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hung for so long that another one was started in its place."""
    started: list[str] = []
    monkeypatch.setattr(os, "execvpe", lambda program, *_: started.append(program))
    status, theirs = os.pipe()
    os.close(status)
    with pytest.raises(BrokenPipeError):
        _become(Launch(("program",), "/cgroup"), theirs)
    os.close(theirs)
    assert not started


@pytest.mark.unit
def test_a_program_that_has_ended_need_not_be_ended() -> None:
    end((1 << 22) + 1)  # beyond what Linux numbers processes by


@pytest.mark.unit
def test_it_starts_with_the_standard_library_alone() -> None:
    """Every container and probe pays for its imports."""
    seen: set[str] = set()
    todo = ["lab", "lab.launch"]
    while todo:
        name = todo.pop()
        path = SOURCE_ROOT / f"{name.replace('.', '/')}.py"
        path = path if path.exists() else SOURCE_ROOT / name / "__init__.py"
        if name in seen or not path.exists():
            seen.add(name)
            continue
        seen.add(name)
        for node in ast.walk(parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{one.name}" for one in node.names if node.module == "lab")]
            elif isinstance(node, ast.Import):
                todo += [one.name for one in node.names]
    foreign = {name for name in seen if name.split(".")[0] not in sys.stdlib_module_names | {"lab"}}
    assert not foreign and "asyncio" not in seen


@pytest.mark.kernel
@pytest.mark.parametrize("overlay", [True, False], ids=["overlay", "overlay refused"])
def test_a_root_has_its_own_writable_places(tmp_path: Path, overlay: bool) -> None:
    """Also where the kernel refuses an overlay, as on a root that is two overlays deep already."""
    hosts, volume, scratch = (tmp_path / name for name in ("hosts", "volume", "scratch"))
    own = f"weft-test-{os.getpid()}"
    hosts.write_text("10.0.0.1 somebody\n")
    for folder in (volume, scratch):
        folder.mkdir()
    script = f"""
import os
from lab import rootfs, syscalls
syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
real = rootfs.mount
def mount(source, target, kind="", flags=0, options=""):
    if kind == "overlay" and not {overlay}:
        raise OSError(22, "refused")
    real(source, target, kind, flags, options)
rootfs.mount = mount
rootfs.enter(rootfs.Root(
    scratch={str(scratch)!r}, hidden=("/usr/share/doc",), files=(({str(hosts)!r}, "/etc/hosts"),),
    volumes=(({str(volume)!r}, "/mnt", False),), passwd="somebody:x:4321:4321::/:/bin/sh",
))
os.execv("/bin/sh", ["sh", "-ec", '''
    touch /tmp/{own} /run/{own} /dev/shm/{own} /var/log/{own} /var/lib/{own} /mnt/written
    cat /etc/hosts; tail -n 1 /etc/passwd; ls /proc | grep -c "^[0-9]"; ls /tmp /usr/share/doc
    ! echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward; ! touch /sys/a 2>/dev/null; echo x >/dev/null; stat -f -c %T /
'''])
"""
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": str(SOURCE_ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hosts_line, user, processes, *rest = done.stdout.splitlines()
    assert (hosts_line, user) == ("10.0.0.1 somebody", "somebody:x:4321:4321::/:/bin/sh")
    assert int(processes) <= 3
    assert rest[:-1] == ["/tmp:", own, "", "/usr/share/doc:"], "its own /tmp, and nothing of a hidden folder"
    assert (rest[-1] == "overlayfs") is overlay
    assert (volume / "written").exists() and not Path("/tmp", own).exists() and not Path("/var/log", own).exists()


@pytest.mark.kernel
def test_a_process_of_a_node_image_sees_the_hosts_run_folder_and_what_is_mounted_there_later(tmp_path: Path) -> None:
    root, state, scratch = (tmp_path / name for name in ("root", "state", "scratch"))
    for folder in (*(root / name for name in ("usr", "proc", "sys", "dev", "run", "tmp", "var/lib")), state, scratch):
        folder.mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "of-the-image").touch()
    script = f"""
mount --bind {scratch} {scratch}; mount --make-shared {scratch}; mkdir {scratch}/late
mount --bind /usr {root}/usr
exec {sys.executable} -S -c '
import os, subprocess
from lab import rootfs
later = "read go; mount -t tmpfs late {scratch}/late; touch {scratch}/late/seen"
outside = subprocess.Popen(["sh", "-c", later], stdin=subprocess.PIPE)
rootfs.enter_image("{root}", ("{state}", "{scratch}"))
open("{state}/written", "w").close(); open("/var/lib/gone", "w").close()
outside.communicate(b"\\n")
print(sorted(os.listdir("/")), os.listdir("{scratch}/late"))
'
"""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", script],
        env={"PYTHONPATH": str(SOURCE_ROOT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "of-the-image" in done.stdout and "['seen']" in done.stdout
    assert (state / "written").exists() and not (root / "var/lib/gone").exists()
