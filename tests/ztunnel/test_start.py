"""What keeps the proxy from starting is one clear line with the mend, and an exit status; nothing else runs meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]


def test_a_wrong_setting_is_one_clear_line() -> None:
    command, environment = [sys.executable, "-m", "ztunnel"], {"PATH": os.environ["PATH"]}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (2, "weft-ztunnel: NODE_NAME is not set: give --node NAME\n")
    run = subprocess.run(command, env=environment | {"LOG_FORMAT": "json"}, capture_output=True, text=True, timeout=60)
    line = json.loads(run.stderr)
    assert (line["level"], line["scope"], line["message"]) == ("error", "ztunnel", "NODE_NAME is not set: give --node NAME")


def crash_dumps_core(folder: Path, code: str) -> bool:
    """Whether the kernel wrote down what a process held that may dump as much as it likes, runs `code`, and crashes."""
    begin = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2); "
    shell = f"cd {folder} && exec {sys.executable} -c '{begin}{code}; os.abort()'"
    pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", shell], {"PYTHONPATH": str(ROOT)})
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


def test_a_crash_leaves_no_key_on_a_disk(tmp_path: Path) -> None:
    if not crash_dumps_core(tmp_path, "pass"):
        pytest.skip("no crash leaves anything here: see /proc/sys/kernel/core_pattern")
    assert not crash_dumps_core(tmp_path, "from ztunnel.__main__ import never_dump_core; never_dump_core()")


def test_a_misspelt_variable_is_a_line_in_the_log(tmp_path: Path) -> None:
    folders = {"WEFT_RUN_DIR": str(tmp_path), "WEFT_STATE_DIR": "/proc/none", "WEFT_STREAM_PER_POD": "9"}
    command = [sys.executable, "-m", "ztunnel", "--node", "n1", "--workers", "1"]
    run = subprocess.run(command, env={**os.environ, **folders}, capture_output=True, text=True, timeout=60)
    line = "warn\tztunnel\tWEFT_STREAM_PER_POD is no setting and changes nothing: the nearest one is WEFT_STREAMS_PER_POD"
    assert [one.partition("\t")[2] for one in run.stderr.splitlines()].count(line) == 1


@pytest.mark.parametrize("name", ["ADMIN_PORT", "STATS_PORT", "READINESS_PORT"])
def test_bind_conflict_fails_startup(tmp_path: Path, name: str) -> None:
    others = dict.fromkeys(("ADMIN_PORT", "STATS_PORT", "READINESS_PORT"), "0")
    folders = {"WEFT_RUN_DIR": str(tmp_path), "WEFT_STATE_DIR": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, **folders, **others, name: str(taken.getsockname()[1])}
        command = [sys.executable, "-m", "ztunnel", "--node", "n1", "--workers", "1"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "address already in use: set " in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["WEFT_RUN_DIR", "WEFT_STATE_DIR"])
def test_a_folder_that_cannot_be_written_is_named_with_its_variable(tmp_path: Path, name: str) -> None:
    folders = {"WEFT_RUN_DIR": str(tmp_path), "WEFT_STATE_DIR": str(tmp_path)} | {name: "/proc/none"}
    command = [sys.executable, "-m", "ztunnel", "--node", "n1", "--workers", "1"]
    run = subprocess.run(command, env={**os.environ, **folders}, capture_output=True, text=True, timeout=60)
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and last.startswith("weft-ztunnel: /proc/none/nodes/n1"), last
    assert last.endswith(f": No such file or directory: name a folder that can be written ({name})")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("-sys_admin", "cannot enter the network namespace: Operation not permitted"),
        ("-net_admin,-net_raw", "Operation not permitted"),
    ],
)
def test_without_its_privileges_it_does_not_start(tmp_path: Path, missing: str, reason: str) -> None:
    command = ["setpriv", f"--bounding-set={missing}", sys.executable, "-m", "ztunnel", "--node", "n1"]
    folders = {"WEFT_RUN_DIR": str(tmp_path), "WEFT_STATE_DIR": str(tmp_path)}
    run = subprocess.run(command, env={**os.environ, **folders}, capture_output=True, text=True, timeout=60)
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and last.startswith("weft-ztunnel: cannot enter network namespaces or mark sockets: "), last
    assert reason in last and last.endswith("run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN")
