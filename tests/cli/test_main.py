"""The command line as a whole: help everywhere, completion, exit codes, and never a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from cli.main import _COMMANDS, _HELP, weft
from lab.client import Lab
from mesh.proto import agent_pb2
from tests.cli.patience import DEADLINE_S

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


def _commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += _commands(command, *path, name) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", _commands(weft), ids=" ".join)
def test_every_command_has_help_with_examples(world: "World", path: tuple[str, ...]) -> None:
    result = world.weft(*path, "--help")
    assert result.exit_code == 0
    assert "\b" not in world.weft("--help").stdout + result.stdout
    assert f"Usage: weft {' '.join(path)}" in result.stdout and f"weft {' '.join(path)}" in result.stdout.split("Examples:")[1]


def _command(path: tuple[str, ...]) -> click.Command:
    command: click.Command = weft
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


@pytest.mark.parametrize(
    "path", [path for path in _commands(weft) if path[-1] not in ("exec", "logs", "completion")], ids=" ".join
)
def test_every_command_that_answers_does_so_as_json_too(path: tuple[str, ...]) -> None:
    (output,) = [one for one in _command(path).params if one.name == "output"]
    assert isinstance(output.type, click.Choice) and {"table", "json"} <= set(output.type.choices)


def test_the_list_of_commands_needs_none_of_them() -> None:
    code = "import sys, cli.main; cli.main.weft.main(['--help'], standalone_mode=False); print('grpc' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.stdout.splitlines()[-1] == "False" and run.returncode == 0
    assert _COMMANDS.keys() == _HELP.keys()


def test_exit_codes_of_the_program() -> None:
    def code_and_error(*arguments: str) -> tuple[int, str]:
        environment = os.environ | {"WEFT_RUN_DIR": "/nonexistent/weft"}
        command = [sys.executable, "-m", "cli.main", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
        assert "Traceback" not in run.stderr
        return run.returncode, run.stderr

    assert code_and_error("version", "--client") == (0, "")
    assert code_and_error("status")[0] == 1
    assert code_and_error("nonsense")[0] == 2 and code_and_error("observe", "--nonsense")[0] == 2


@pytest.mark.parametrize("said", ["stats", "lab staus", "certificates rotat-root"])
def test_a_misspelt_command_names_the_nearest(world: "World", said: str) -> None:
    result = world.weft(*said.split())
    wanted = "rotate-root" if "root" in said else "status"
    assert (result.exit_code, result.stderr.splitlines()[-1].endswith(f"Did you mean {wanted!r}?")) == (2, True)


def test_a_mistake_of_the_program_is_one_line(world: "World") -> None:
    code = "import cli.main, cli.version; cli.version.platform.release = lambda: 1 / 0; cli.main.main()"
    run = subprocess.run([sys.executable, "-c", code, "version"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 1
    assert run.stderr == "weft: internal error: ZeroDivisionError: division by zero; WEFT_DEBUG=1 shows where\n"


def test_a_removal_that_is_interrupted_says_how_it_goes_on(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lab, "down", interrupted)
    result = world.weft("lab", "down")
    assert result.exit_code == 1 and result.stderr == (
        "weft: lab: interrupted, and a part of the lab is left: weft lab down goes on with it\n"
    )


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cli.main", "version", "--client"]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S)
    assert (run.returncode, run.stderr) == (1, "weft: No space left on device\n")


def test_a_failure_among_several_tasks_is_one_as_any_other(world: "World") -> None:
    code = (
        "import cli.main, cli.version\n"
        "async def running(places): raise ExceptionGroup('', [ExceptionGroup('', [cli.version.Failure('agent', 'gone')])])\n"
        "cli.version._running = running; cli.main.main()"
    )
    run = subprocess.run([sys.executable, "-c", code, "version"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (run.returncode, run.stderr) == (1, "weft: agent: gone\n")


def test_names_that_cannot_be_and_folders_that_may_not_be_read_are_one_line(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    nobody = "import os, cli.status; from cli.main import main; os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"

    def run(run_dir: str) -> tuple[int, str]:
        environment = os.environ | {"WEFT_RUN_DIR": run_dir}
        ran = subprocess.run(
            [sys.executable, "-c", nobody, "status"], capture_output=True, text=True, env=environment, timeout=DEADLINE_S
        )
        return ran.returncode, ran.stderr

    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    assert run(str(closed)) == (1, f"weft: no permission to open {closed}/nodes; run as root\n")
    words = "processes start in different folders: write a whole path, from /"
    assert run("closed") == (2, f"weft: WEFT_RUN_DIR='closed': {words}\n")


def run_as_nobody(world: "World", *arguments: str) -> subprocess.CompletedProcess[str]:
    """Becomes nobody when all is imported: nobody may be unable to read where weft was cloned to."""
    world.places.run.parent.chmod(0o755)
    for socket in world.places.run.rglob("*.sock"):
        socket.chmod(0o600)
    environment = os.environ | {"WEFT_RUN_DIR": str(world.places.run), "WEFT_STATE_DIR": str(world.places.state)}
    modules = "cli.token, cli.status, cli.resources"
    nobody = f"import os, {modules}; from cli.main import main; os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    command = [sys.executable, "-c", nobody, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE_S)


def test_who_may_not_open_a_socket_is_told_so(world: "World") -> None:
    world.control()
    said = f"weft: control plane: no permission to open {world.places.control_socket}; run as root\n"
    for command in ("token", "workloads"):
        run = run_as_nobody(world, command, *(["node-a"] if command == "token" else []))
        assert (run.returncode, run.stderr) == (1, said)


def test_a_table_does_not_call_down_who_may_not_be_asked(world: "World") -> None:
    world.control()
    world.agent("node-a", agent_pb2.StatusResponse())
    world.proxy("node-a", {})
    world.node_folder("node-b")
    run = run_as_nobody(world, "status")
    lines = [line.split("   ") for line in run.stdout.splitlines()]
    cells = [[cell.strip() for cell in line if cell] for line in lines]
    assert cells[0] == ["control: no permission"]
    assert cells[3] == ["node-a", "no permission", "no permission", *"-----"]
    assert cells[4] == ["node-b", "down", "down", *"-----"]
    sockets = world.places.control_socket, world.places.node("node-a").agent_socket, world.places.node("node-a").admin_socket
    for socket in sockets:
        assert f"no permission to open {socket}; run as root" in run.stdout
    said = f"weft: control plane: no permission to open {world.places.control_socket}; run as root\n"
    assert run_as_nobody(world, "workloads").stderr == said, "once, not for each part that would be asked instead"


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("weft ob", 1, "observe"),
        ("weft lab ex", 2, "exec"),
        ("weft observe --from-p", 2, "--from-pod"),
        ("weft status --node ", 3, "node-a"),
    ],
)
def test_completion(world: "World", words: str, index: int, expected: str) -> None:
    world.node_folder("node-a")
    environment = os.environ | {"WEFT_RUN_DIR": str(world.places.run), "_WEFT_COMPLETE": "bash_complete"}
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(index)}
    run = subprocess.run(
        [sys.executable, "-m", "cli.main"], capture_output=True, text=True, env=environment, timeout=DEADLINE_S
    )
    assert f"plain,{expected}" in run.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(world: "World", shell: str) -> None:
    result = world.weft("completion", shell)
    assert result.exit_code == 0 and f"_WEFT_COMPLETE={shell}_complete" in result.stdout
