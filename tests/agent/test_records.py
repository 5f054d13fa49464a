"""What is on disk comes back as it was, and a spoilt file is reported, not guessed at."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.pod import Pod, PodRequest
from agent.records import Record, Records

pytestmark = pytest.mark.unit

REQUEST = PodRequest(
    "u-1", "demo", "web", "web", "/run/netns/x", (ip_address("10.0.0.2"), ip_address("fd00::2")), (("app", "web"),), "/cg/x"
)
RECORD = Record(Pod(REQUEST, (4, 77), 12, "boot"), 1_700_000_000, (("10.0.0.2", 80, "10.0.0.9", 4000),), (("ipv4/x", "1"),))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    records = Records(tmp_path / "pods")
    records.write(RECORD)
    assert Records(tmp_path / "pods").read() == ([RECORD], {})
    records.remove("u-1")
    records.remove("u-1")
    assert records.read() == ([], {})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "uid": "other"}', "\0"])
def test_a_spoilt_record_is_a_problem_and_the_others_are_read(tmp_path: Path, content: str) -> None:
    records = Records(tmp_path)
    records.write(RECORD)
    (tmp_path / "spoilt.json").write_text(content)
    found, problems = records.read()
    assert found == [RECORD]
    assert list(problems) == ["spoilt"] and "spoilt.json" in problems["spoilt"]


def test_an_interrupted_write_is_not_a_record(tmp_path: Path) -> None:
    (tmp_path / "u-1.new").write_text("{")
    assert Records(tmp_path).read() == ([], {})
