"""What is on disk comes back as it was, and a spoilt file is reported, not guessed at."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.pod import Pod, PodRequest
from agent.records import Record, Records, _to_document
from mesh.exclusions import NOTHING, Exclusions

pytestmark = pytest.mark.unit

REQUEST = PodRequest(
    "u-1",
    "demo",
    "web",
    "web",
    "/run/netns/x",
    (ip_address("10.0.0.2"), ip_address("fd00::2")),
    (("app", "web"),),
    "/cg/x",
    Exclusions((3306,), (ip_network("10.9.0.0/16"), ip_network("fd09::/16")), (9100,), all_inbound=True, dns=True),
    ("annotation x: bad",),
)
RECORD = Record(
    Pod(REQUEST, (4, 77), 12, "boot"), 1_700_000_000, (("10.0.0.2", 80, "10.0.0.9", 4000),), (("ipv4/x", "1"),), (80,)
)


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    records = Records(tmp_path / "pods")
    records.write(RECORD)
    assert Records(tmp_path / "pods").read() == ([RECORD], {})
    records.remove("u-1")
    records.remove("u-1")
    assert records.read() == ([], {})


def test_what_an_agent_did_not_know_of_its_record_has_not(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(RECORD)
    path = tmp_path / "u-1.json"
    document = json.loads(path.read_text())
    del document["exclusions"], document["troubles"], document["served"]
    path.write_text(json.dumps(document))
    older = replace(REQUEST, exclusions=NOTHING, troubles=())
    assert records.read() == ([replace(RECORD, pod=replace(RECORD.pod, request=older), served=())], {})


WHOLE = json.dumps(_to_document(RECORD))
SPOILT = [
    "",
    "[]",
    "{}",
    '{"version": 2}',
    "\0",
    "[" * 100_000,
    WHOLE,
    WHOLE.replace("1700000000", "Infinity"),
    WHOLE.replace("u-1", "spoilt") + " " * (1 << 20),
]


def test_only_what_says_so_excludes_everything(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for said in ("false", 1, [0]):
        document = json.loads(WHOLE)
        document["exclusions"] |= {"all_inbound": said, "dns": said}
        (tmp_path / "u-1.json").write_text(json.dumps(document))
        assert records.read()[0][0].pod.request.exclusions == replace(REQUEST.exclusions, all_inbound=False, dns=False)


@pytest.mark.parametrize("content", SPOILT, ids=range(len(SPOILT)))
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
