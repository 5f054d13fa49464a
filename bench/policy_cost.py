"""`python -m bench.policy_cost`: what one new connection pays for policies, in the terms of the data worker. Prints JSON.

Two shapes, both with 10,000 policies in the mesh: all of them apply to one workload (ten rules each, no rule matches, as in the
benchmark of Istio's ztunnel), and a hundred in the workload's namespace of which ten apply to it.
"""

import json
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from statistics import median

from bench.scale import NAMESPACES, POLICIES_EACH, policies, stranger
from mesh.policy import Policy, Scope
from mesh.policy_set import evaluate
from mesh.policy_store import PolicyStore
from mesh.workload import Workload

_TIMES = 200
_BUDGET_S = 3.0


def _workload(namespace: str, listed: tuple[str, ...] = ()) -> Workload:
    uid, address = f"Kubernetes//Pod/{namespace}/server", IPv4Address("10.0.0.2")
    return Workload(uid=uid, name="server", namespace=namespace, addresses=(address,), authorization_policies=listed)


def cost_us(store: PolicyStore, workload: Workload) -> float:
    """The median of one evaluation, after the first. Each is of another client: no verdict is one that is remembered."""
    clients, destination = IPv4Network("10.1.0.0/16").hosts(), workload.addresses[0]
    evaluate(store.applicable(workload), stranger(next(clients), destination))
    took: list[float] = []
    begin = time.perf_counter()
    while len(took) < _TIMES and time.perf_counter() - begin < _BUDGET_S:
        client = next(clients)
        started = time.perf_counter_ns()
        evaluate(store.applicable(workload), stranger(client, destination))
        took.append((time.perf_counter_ns() - started) / 1000)
    return median(took)


def main() -> None:
    """Measure both shapes."""
    total = NAMESPACES * POLICIES_EACH
    crowded = PolicyStore()
    crowded.apply(policies(total, "crowded"), ())
    spread = PolicyStore()
    for number in range(NAMESPACES):
        spread.apply((_selected(one) for one in policies(POLICIES_EACH, f"scale-{number}")), ())
    listed = tuple(f"scale-7/policy-{number}" for number in range(0, POLICIES_EACH, 10))
    found = {
        "all_apply_us": cost_us(crowded, _workload("crowded")),
        "ten_apply_us": cost_us(spread, _workload("scale-7", listed)),
    }
    json.dump(found, sys.stdout)


def _selected(policy: Policy) -> Policy:
    return Policy(policy.namespace, policy.name, Scope.WORKLOAD_SELECTOR, policy.action, policy.rules)


if __name__ == "__main__":
    main()
