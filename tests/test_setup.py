"""setup.sh broken off: the machine is left as it was, at the latest by the next run. And which kernel headers it takes."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel
_SETUP = Path(__file__).parents[1] / "setup.sh"
_STUBS = {
    "dpkg-query": 'case "$*" in *" nginx") exit 1 ;; *) printf installed ;; esac',
    "apt-get": 'case "$*" in *install*) echo installing; exec sleep "$APT_S" ;; esac',
    "systemctl": 'echo "systemctl $*"',
    "deb-systemd-helper": ":",
    "update-rc.d": ":",
}
_OWN_SBIN = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" /usr/sbin
rm -f /usr/sbin/policy-rc.d
APT_S=1000 setsid "$2" & first=$!
read -r go
kill -9 -- "-$first"
wait "$first"
sed -n 's/.*New here: //p' /usr/sbin/policy-rc.d
APT_S=nonsense "$2"
[ -e /usr/sbin/policy-rc.d ] || echo gone
"""
"""Setup is killed while apt installs nginx, and run again; then apt fails."""


def test_a_killed_set_up_leaves_no_rule_that_keeps_servers_from_starting(tmp_path: Path) -> None:
    for name, script in _STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "own").mkdir()
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-c",
        _OWN_SBIN,
        "bash",
        str(tmp_path / "own"),
        str(_SETUP),
    ]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert run.stdout is not None
        while (line := run.stdout.readline()) != "installing\n":
            assert line
        out, _ = run.communicate("go\n", timeout=110)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert [line for line in out.splitlines() if "waiting for another" not in line] == [
        "nginx",
        "== finishing an installation that was killed: nginx",
        "== Debian packages: nginx",
        "installing",
        "gone",
    ]


_NO_HEADERS = """
mount -t tmpfs tmpfs /usr/src && mount -t tmpfs tmpfs /usr/sbin
exec "$1"
"""


@pytest.mark.parametrize(
    ("known", "installed"),
    [
        ("linux-headers-6.99-cloud linux-headers-amd64", "linux-headers-6.99-cloud"),
        ("linux-headers-amd64", "linux-headers-amd64"),
    ],
)
def test_headers_are_those_of_the_running_kernel_where_debian_has_them(tmp_path: Path, known: str, installed: str) -> None:
    stubs = {
        "dpkg": "echo amd64",
        "dpkg-query": 'case "$*" in *linux-headers*) exit 1 ;; *) printf installed ;; esac',
        "uname": "echo 6.99-cloud",
        "apt-cache": f'case " {known} " in *" $2 "*) ;; *) exit 100 ;; esac',
        "apt-get": 'case "$*" in *install*) echo "apt-get $*"; exit 1 ;; esac',
    }
    for name, script in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    run = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", _NO_HEADERS, "bash", str(_SETUP)],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.stdout.split()[-1] == installed, run
