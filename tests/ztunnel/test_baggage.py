"""What peers say of themselves: read, bounded, and never believed beyond what they proved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import Identity
from mesh.workload import Locality, Workload
from ztunnel import baggage
from ztunnel.baggage import MAX_BYTES, MAX_PER_IDENTITY, Described, Descriptions, baggage_of, parse_baggage

pytestmark = pytest.mark.unit

IDENTITY = Identity("cluster.local", "amb", "one")
SAID = (
    b"k8s.cluster.name=K2,k8s.namespace.name=elsewhere,k8s.deployment.name=web,service.name=canon,service.version=rev7,"
    b"cloud.region=r,cloud.availability_zone=z"
)


def test_baggage_parser() -> None:
    assert Descriptions().read(IDENTITY, SAID) == Described(IDENTITY, "canon", "rev7", "deployment", "web", "K2", "r", "z")
    assert Descriptions().read(IDENTITY, b"") == Described(IDENTITY)
    backwards = b",".join(reversed(SAID.split(b",")))
    assert Descriptions().read(IDENTITY, backwards) == Descriptions().read(IDENTITY, SAID)
    assert parse_baggage(b"a=1,b=,=x,junk, c = 3 ") == {"a": "1", "c": "3", "": "x"}


def test_what_a_workload_says_of_itself_is_what_the_other_side_reads() -> None:
    workload = Workload(
        "uid",
        "web-1",
        "elsewhere",
        cluster_id="K2",
        workload_type="deployment",
        workload_name="web",
        canonical_name="canon",
        canonical_revision="rev7",
        locality=Locality("r", "z", "s"),
    )
    assert baggage_of(workload) == SAID


def test_what_a_workload_lacks_is_left_out() -> None:
    bare = Workload("uid", "web-1", "shop", cluster_id="", workload_type="", workload_name="web", canonical_name="\xfc")
    assert baggage_of(bare) == b"k8s.namespace.name=shop,service.name=?"


@pytest.mark.parametrize("kind", ["deployment", "cronjob", "pod", "job"])
def test_a_workloads_kind_is_said_and_read(kind: str) -> None:
    workload = Workload("uid", "web-1", "shop", cluster_id="K2", workload_type=kind, workload_name="web")
    said = baggage_of(workload)
    assert said == f"k8s.cluster.name=K2,k8s.namespace.name=shop,k8s.{kind}.name=web".encode()
    assert Descriptions().read(IDENTITY, said) == Described(IDENTITY, kind=kind, workload="web", cluster="K2")


def test_what_is_long_is_read_up_to_a_bound() -> None:
    longest = b"service.name=" + b"x" * (MAX_BYTES - 13)
    assert Descriptions().read(IDENTITY, longest).service == "x" * 253
    assert Descriptions().read(IDENTITY, longest + b"x") == Described(IDENTITY)


def test_the_namespace_is_the_one_that_was_proved() -> None:
    workload = Descriptions().read(IDENTITY, SAID).as_workload("canon")
    assert (workload.namespace, workload.identity, workload.cluster_id) == ("amb", IDENTITY, "K2")
    assert workload.locality == Locality("r", "z") and workload.workload_name == "web" and workload.uid == ""


def test_a_peer_that_says_ever_new_things_is_only_its_identity() -> None:
    heard = Descriptions()
    said = {heard.read(IDENTITY, b"service.name=%d" % number) for number in range(10 * MAX_PER_IDENTITY)}
    assert len(said) == MAX_PER_IDENTITY + 1
    assert heard.read(IDENTITY, b"service.name=1").service == "1"
    other = IDENTITY._replace(service_account="two")
    assert heard.read(other, b"service.name=new").service == "new"
    assert heard.read(other, b"service.name=" + bytes(MAX_BYTES)) == Described(other)


def test_what_all_say_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baggage, "_MAX_DESCRIPTIONS", 10)
    heard = Descriptions()
    for number in range(100):
        identity = IDENTITY._replace(service_account=f"sa{number}")
        assert heard.read(identity, b"service.name=x").service == "x"
        assert sum(len(said) for said in heard._known.values()) == number % 10 + 1
    first, other = (heard.read(IDENTITY._replace(namespace=name), b"service.name=x") for name in ("first", "other"))
    assert heard.read(first.identity, b"service.name=x") is first is not other, "what is said after that is remembered again"


@given(st.binary(max_size=300))
def test_any_bytes_are_read(said: bytes) -> None:
    described = Descriptions().read(IDENTITY, said)
    assert described.identity == IDENTITY
    assert all(len(value) <= 253 for value in described[1:])
