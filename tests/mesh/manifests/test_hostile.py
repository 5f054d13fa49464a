"""Manifests as large and as wrong as they may be: they cost what their size says, and are refused in few words."""

import time

import pytest

from mesh.manifests import check_references, parse
from mesh.manifests.manifest_set import MAX_PROBLEMS

pytestmark = pytest.mark.unit

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec: {hosts: [a.example], ports: [{number: 80, name: http}], endpoints: [%s]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: NAME, MARKS}
spec: {ports: [{port: 80}], MORE}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{name: c, command: [x], volumeMounts: [%s]}], volumes: [%s]}
"""


def service(more: str = "selector: {}", marks: str = "namespace: demo", name: str = "a") -> str:
    return SERVICE.replace("NAME", name).replace("MARKS", marks).replace("MORE", more)


def listed(entry: str, count: int) -> str:
    return ", ".join(entry.replace("NUMBER", str(number)) for number in range(count))


@pytest.mark.parametrize(
    "text",
    [
        ENTRY % listed("{adress: 192.0.2.1}", 30_000),
        service(f"ipFamilies: [{listed('IPv4', 300_000)}]"),
        service(listed("unknownNUMBER: 1", 30_000)),
        POD % (listed("{name: vNUMBER, mountPath: /x}", 60_000), listed("{name: vNUMBER, emptyDir: {}}", 60_000)),
    ],
    ids=["mistakes", "families", "unknown fields", "volumes"],
)
def test_a_long_list_costs_no_more_than_its_length(text: str) -> None:
    began = time.process_time()
    parse({"f": text})
    assert time.process_time() - began < 12, "some seconds on a slow machine, where the square of it were a minute"


def test_of_very_many_problems_some_are_shown_and_the_set_is_refused_all_the_same() -> None:
    texts = [service("type: NodePort", name=f"a{number}") for number in range(MAX_PROBLEMS + 5)]
    read = parse({"f": "\n---\n".join(texts)})
    assert not read.refused and len(read.objects) == len(texts)
    read = parse({"f": "\n---\n".join([*texts, service("typo: 1")])})
    assert read.refused and len(read.problems) == MAX_PROBLEMS + 2
    assert read.problems[-2].reason == f"there are more warnings than the {MAX_PROBLEMS} that are shown"
    assert read.problems[-1].field == "spec.typo"
    read = parse({"f": ENTRY % listed("{adress: 192.0.2.1}", MAX_PROBLEMS)})
    assert len(read.problems) == MAX_PROBLEMS + 1 and read.problems[-1].reason.startswith("there are more mistakes than")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        (service(name="a" * 100_000), "at most 63 of a-z, 0-9 and '-', beginning with a letter"),
        (service(marks=f"namespace: {'a' * 100_000}"), "at most 63 of a-z, 0-9 and '-', with a letter or digit at both ends"),
        (service(f"type: {'a' * 100_000}"), "is none of ClusterIP, NodePort, LoadBalancer, ExternalName"),
        (service().replace("kind: Service", f"kind: {'a' * 100_000}"), "PeerAuthentication"),
        (service(f"selector: {{? {'a' * 100_000} : b}}"), "NAME at most 63 of letters, digits, '-', '_' and '.'"),
    ],
    ids=["name", "namespace", "word", "kind", "key"],
)
def test_a_text_of_any_length_is_refused_in_few_words_that_say_how_to_mend_it(text: str, mend: str) -> None:
    [problem] = parse({"f": text}).problems
    assert len(str(problem)) < 4000 and mend in problem.reason


def test_a_share_of_many_digits_is_a_warning_like_any_wrong_one() -> None:
    wish = "labels: {istio.io/use-waypoint: gw, istio.io/use-waypoint-canary: new}"
    for share in ("101", "9" * 5000, "x" * 5000):
        read = parse({"f": service(marks=f"{wish}, annotations: {{istio.io/use-waypoint-canary-weight: '{share}'}}")})
        found = [one for one in check_references(read.objects) if "canary" in one.field]
        assert len(found) == 1 and found[0].warning and len(found[0].reason) < 200
        assert found[0].reason.endswith("write a number of percent from 0 to 100; the first waypoint gets all")
