"""What the agent is told about exclusions: flags win over the environment, and a bad list ends the start with its reason."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from agent import __main__ as entry
from agent.node_agent import open_redirect
from agent.settings import Settings, parse
from mesh.exclusions import NOTHING, Exclusions

pytestmark = pytest.mark.unit

NODE = ("--node", "n1", "--cgroup", "/sys/fs/cgroup/n1")


def test_lists_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(NODE).exclusions == NOTHING
    monkeypatch.setenv("WEFT_EXCLUDE_OUTBOUND_PORTS", "3306,5432")
    monkeypatch.setenv("WEFT_EXCLUDE_OUTBOUND_RANGES", "")
    monkeypatch.setenv("WEFT_EXCLUDE_INBOUND_PORTS", "9100")
    given = parse((*NODE, "--exclude-inbound-ports", "9200", "--exclude-outbound-ranges", "10.9.0.0/16"))
    assert given.exclusions == Exclusions((3306, 5432), (ip_network("10.9.0.0/16"),), (9200,))
    assert parse((*NODE, "--exclude-outbound-ports", "")).exclusions == Exclusions((), (), (9100,))


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_bad_list_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_flag: bool
) -> None:
    more = ("--exclude-outbound-ports", "http") if by_flag else ()
    if not by_flag:
        monkeypatch.setenv("WEFT_EXCLUDE_OUTBOUND_PORTS", "http")
    with pytest.raises(SystemExit):
        parse((*NODE, *more))
    where = "--exclude-outbound-ports" if by_flag else "WEFT_EXCLUDE_OUTBOUND_PORTS"
    assert f"{where}: 'http' is not a port: write numbers from 1 to 65535" in capsys.readouterr().err


def test_a_misspelt_list_is_refused_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WEFT_EXCLUDE_INBOUND_PORT", "9100")
    with pytest.raises(SystemExit):
        parse(NODE)
    assert "WEFT_EXCLUDE_INBOUND_PORT: no such list: write one of WEFT_EXCLUDE_INBOUND_PORTS, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--node", "../n1"), "--node '../n1': not a node's name: lower-case letters, digits, '-' and '.'"),
        (("--metrics-port", "99999"), "--metrics-port 99999: not a port from 0 to 65535"),
    ],
)
def test_what_cannot_be_is_refused_and_named(capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str) -> None:
    with pytest.raises(SystemExit):
        parse((*NODE, *more))
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_cgroup_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"^{tmp_path} is no cgroup of version 2: name the node's own with --cgroup"):
        open_redirect(parse(("--node", "n1", "--cgroup", str(tmp_path), "--bpffs", str(tmp_path / "bpf"))))
    assert not list(tmp_path.iterdir())


def test_who_may_not_do_it_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: Settings) -> None:
        raise PermissionError(13, "Permission denied", "/sys/fs/cgroup/n1/pods")

    monkeypatch.setattr(entry, "take_all", lambda: None)
    monkeypatch.setattr(entry, "lock", refuse)
    assert entry.main(NODE) == 1
    said = capsys.readouterr().err
    assert "'/sys/fs/cgroup/n1/pods': run as root, with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN\n" in said
