"""The large mesh is as large as it says, and its parts are valid."""

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bench import policy_cost
from bench.scale import objects, policies, reports, stranger
from bench.topology import NODES, crowd
from mesh.manifests import Pod, parse
from mesh.matching import Connection
from mesh.policy import Policy
from mesh.policy_set import Verdict, evaluate
from mesh.policy_store import PolicyStore
from mesh.workload import Workload

pytestmark = pytest.mark.unit


def test_the_large_mesh_has_what_its_name_says() -> None:
    kinds: dict[str, int] = {}
    for one in objects():
        kinds[one["kind"]] = kinds.get(one["kind"], 0) + 1
    assert (kinds["Pod"], kinds["Service"], kinds["AuthorizationPolicy"]) == (10_000, 1_000, 10_000)
    addresses = [address for _, _, address in reports()]
    assert len(set(addresses)) == 10_000
    assert all(ip_address(address) in ip_network(NODES["a"][0]) for address in addresses)


def test_its_manifests_are_valid() -> None:
    first = [one for one in objects() if "scale-7" in (one["metadata"].get("namespace"), one["metadata"]["name"])]
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"podCIDRs": list(NODES["a"])}}]
    found = parse({"large.yaml": "\n---\n".join(json.dumps(one) for one in [*nodes, *first])})
    assert found.problems == [] and len(found.of(Pod)) == 100


def test_the_crowd_is_of_one_node() -> None:
    pods = crowd(3)
    assert len(pods) == 3 and {one["spec"]["nodeName"] for one in pods} == {"a"}  # type: ignore[index]


def test_no_policy_matches_the_stranger_who_is_refused_by_default() -> None:
    store = PolicyStore()
    store.apply(policies(20, "ns"), ())
    address = IPv4Address("10.0.0.2")
    workload = Workload(uid="w", name="server", namespace="ns", addresses=(address,))
    verdict = evaluate(store.applicable(workload), stranger(IPv4Address("10.0.0.1"), address))
    assert not verdict.allowed and verdict.policy is None


def test_no_verdict_is_measured_that_is_only_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Connection] = []

    def decide(policies: Iterable[Policy], connection: Connection) -> Verdict:
        asked.append(connection)
        return evaluate(policies, connection)

    monkeypatch.setattr(policy_cost, "evaluate", decide)
    workload = Workload(uid="w", name="server", namespace="ns", addresses=(IPv4Address("10.0.0.2"),))
    assert 0 < policy_cost.cost_us(PolicyStore(), workload) < 1e6
    assert len(asked) == len(set(asked)) > 1
