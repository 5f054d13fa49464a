"""What the inventory answers must not depend on the order in which workloads and services arrive."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.inventory import Inventory
from mesh.policy import Action, Policy, Scope
from mesh.policy_store import PolicyStore
from mesh.workload import NamespacedHostname, NetworkAddress, NetworkMode, Service, TunnelProtocol, Workload

pytestmark = pytest.mark.unit

ADDRESS = ip_address("10.0.0.1")
KEY = "ns/svc.example"


def pod(name: str = "a", **fields: object) -> Workload:
    base = Workload(uid=f"K//Pod/ns/{name}", name=name, namespace="ns", addresses=(ADDRESS,), services={KEY: {80: 8080}})
    return replace(base, **fields)  # type: ignore[arg-type]


def service(namespace: str = "ns", hostname: str = "svc.example", *vips: str, network: str = "", **fields: object) -> Service:
    addresses = []
    for vip in vips:
        text, _, prefix = vip.partition("/")
        addresses.append(NetworkAddress(network, ip_address(text), int(prefix) if prefix else None))
    return replace(Service(hostname, namespace, hostname, tuple(addresses), {80: 0}), **fields)  # type: ignore[arg-type]


def inventory(*things: Workload | Service) -> Inventory:
    made = Inventory()
    made.apply(things, ())
    return made


def uids(workloads: Iterable[object]) -> list[str]:
    return sorted(one.workload.uid for one in workloads)  # type: ignore[attr-defined]


def test_lookup_address() -> None:
    """A workload before a service by address; a service before a workload by name; nothing is nothing."""
    named = pod(hostname="svc.example", services={})
    both = inventory(named, service("ns", "svc.example", "10.0.0.1", "10.0.0.9"))
    by_name = NamespacedHostname("ns", "svc.example")
    assert both.by_address("", ADDRESS) == named == both.referred(NetworkAddress("", ADDRESS))
    assert both.referred(NetworkAddress("", ip_address("10.0.0.9"))) == both.service(KEY) == both.referred(by_name)
    both.apply((), [KEY])
    assert both.referred(by_name) == named
    assert both.referred(NamespacedHostname("other", "svc.example")) is None
    assert both.referred(NetworkAddress("", ip_address("10.0.0.9"))) is None
    assert both.referred(NetworkAddress("n2", ADDRESS)) is None
    both.apply([replace(named, hostname="new.example")], ())
    assert both.referred(by_name) is None and both.workload_by_hostname("ns", "new.example") is not None


# --- endpoints


def test_endpoints_wait_for_their_service() -> None:
    known = inventory(pod())
    assert known.endpoints(KEY) == ()
    assert [endpoint.workload.uid for endpoint in known.staged()[KEY]] == ["K//Pod/ns/a"]
    known.apply([service()], ())
    (endpoint,) = known.endpoints(KEY)
    assert (endpoint.workload, endpoint.ports) == (pod(), {80: 8080})
    assert known.staged() == {}


def test_staged_services_cleanup() -> None:
    known = inventory(pod())
    known.apply((), ["K//Pod/ns/a"])
    assert known.staged() == {}


def test_a_service_update_keeps_its_endpoints() -> None:
    known = inventory(service(), pod())
    known.apply([service(canonical=True)], ())
    assert uids(known.endpoints(KEY)) == ["K//Pod/ns/a"]
    known.apply((), [KEY])
    assert known.endpoints(KEY) == ()
    known.apply([service()], ())
    assert uids(known.endpoints(KEY)) == ["K//Pod/ns/a"]


def test_remove_drops_endpoint() -> None:
    known = inventory(service(), pod("a"), pod("b"))
    assert uids(known.endpoints(KEY)) == ["K//Pod/ns/a", "K//Pod/ns/b"]
    known.apply((), ["K//Pod/ns/a"])
    assert uids(known.endpoints(KEY)) == ["K//Pod/ns/b"]


def test_a_workload_that_no_longer_names_the_service_leaves_it() -> None:
    known = inventory(service(), pod())
    known.apply([pod(services={})], ())
    assert known.endpoints(KEY) == ()


def test_apply_endpoints_removal_before_upsert() -> None:
    known = inventory(service(), pod())
    known.apply([pod(services={KEY: {80: 9090}})], ["K//Pod/ns/a"])
    (endpoint,) = known.endpoints(KEY)
    assert endpoint.ports == {80: 9090}


def test_unhealthy_workloads_are_no_endpoints_unless_asked_for() -> None:
    known = inventory(service(), pod())
    known.apply([pod(healthy=False)], ())
    assert known.endpoints(KEY) == ()
    known.apply([service(allow_unhealthy=True)], ())
    assert uids(known.endpoints(KEY)) == ["K//Pod/ns/a"]
    known.apply([service()], ())
    assert known.endpoints(KEY) == ()


def test_unhealthy_workloads_staged() -> None:
    known = inventory(pod(healthy=False))
    known.apply([service()], ())
    assert known.endpoints(KEY) == ()


# --- workloads by address and pod


def test_overlapping_workload_ip() -> None:
    entry = pod("we", uid="K/networking.istio.io/WorkloadEntry/ns/we", protocol=TunnelProtocol.HBONE)
    plain, tunnelled = pod("plain"), pod("tunnelled", protocol=TunnelProtocol.HBONE)
    known = inventory(tunnelled, plain, entry)
    assert known.workload_by_address("", ADDRESS) == tunnelled
    known.apply((), [tunnelled.uid])
    assert known.workload_by_address("", ADDRESS) == plain
    known.apply((), [plain.uid])
    assert known.workload_by_address("", ADDRESS) == entry
    known.apply((), [entry.uid])
    assert known.workload_by_address("", ADDRESS) is None


def test_an_entry_does_not_take_the_address_of_a_gateway() -> None:
    """Its identity would be expected of the gateway, and nobody reached behind it."""
    way = pod("way", uid="NetworkGateway/far/10.0.0.1/15008", network="far")
    entry = pod("we", uid="K/networking.istio.io/WorkloadEntry/ns/we", network="far", protocol=TunnelProtocol.HBONE)
    for things in ((way, entry), (entry, way)):
        assert inventory(*things).workload_by_address("far", ADDRESS) == way
    assert inventory(way, pod("one", network="far")).workload_by_address("far", ADDRESS) == pod("one", network="far")


def test_of_equal_claims_the_newest_counts() -> None:
    known = inventory(pod("old"), pod("new"))
    found = known.workload_by_address("", ADDRESS)
    assert found is not None
    assert found.name == "new"


def test_host_network_workloads_own_no_address() -> None:
    known = inventory(pod(network_mode=NetworkMode.HOST_NETWORK))
    assert known.workload_by_address("", ADDRESS) is None
    assert known.workload("K//Pod/ns/a") is not None


def test_an_address_means_something_in_its_network_only() -> None:
    known = inventory(pod(network="net1", addresses=(ADDRESS, ip_address("fd00::1"))))
    assert known.workload_by_address("", ADDRESS) is None
    assert known.workload_by_address("net1", ip_address("fd00::1")) is not None


def test_an_address_that_moved_is_forgotten() -> None:
    known = inventory(pod())
    known.apply([pod(addresses=(ip_address("10.0.0.2"),))], ())
    assert known.workload_by_address("", ADDRESS) is None


def test_the_workload_of_a_pod_needs_the_right_account() -> None:
    known = inventory(pod(service_account="sa"))
    assert known.workload_of_pod("ns", "a", "sa") is not None
    assert known.workload_of_pod("ns", "a", "other") is None
    assert known.workload_of_pod("other", "a", "sa") is None


def test_who_is_called_as_a_pod_is_and_is_none_does_not_stand_for_it() -> None:
    """Its policies and its waypoint would be the pod's."""
    listed = pod(uid="K/networking.istio.io/ServiceEntry/ns/a/192.0.2.1")
    behind = pod(uid="K/discovery.k8s.io/EndpointSlice/ns/a/192.0.2.1")
    machine, one = pod(uid="K/networking.istio.io/WorkloadEntry/ns/a"), pod()
    assert inventory(listed, behind).workload_of_pod("ns", "a", "default") is None
    assert inventory(listed, machine).workload_of_pod("ns", "a", "default") == machine, "a machine with a proxy of its own"
    assert inventory(listed, behind, machine, one).workload_of_pod("ns", "a", "default") == one


def test_the_pod_of_a_name_on_another_node_or_of_another_cluster_does_not_stand_for_the_one_here() -> None:
    """It lists other policies: one that moves here is not judged by what its predecessor elsewhere was labelled."""
    before, here = pod(node="n2"), pod(node="n1")
    moved = inventory(before)
    assert moved.workload_of_pod("ns", "a", "default", "n1") is None and moved.workload_of_pod("ns", "a", "default") == before
    moved.apply([here], [])
    assert moved.workload_of_pod("ns", "a", "default", "n1") == here
    theirs = pod(uid="A//Pod/ns/a", node="n1", cluster_id="A")
    for order in ((theirs, here), (here, theirs)):
        both = inventory(*order)
        assert both.workload_of_pod("ns", "a", "default", "n1", "Kubernetes") == here
        assert both.workload_of_pod("ns", "a", "default", "n1", "A") == theirs
    for order in ((theirs, pod()), (pod(), theirs)):
        assert inventory(*order).workload_of_pod("ns", "a", "default", "n1", "Kubernetes") == theirs, "it is known to be here"
    machine, nowhere = pod(uid="K/networking.istio.io/WorkloadEntry/ns/a"), pod()
    assert inventory(machine, before).workload_of_pod("ns", "a", "default", "n1") == machine
    assert inventory(nowhere).workload_of_pod("ns", "a", "default", "n1") == nowhere, "nobody says where it is"


# --- services by address


def test_shared_vip_different_namespaces() -> None:
    one, two = service("one", "one.x", "10.1.0.1"), service("two", "two.x", "10.1.0.1", canonical=True)
    known = inventory(one, two)
    where = ("", ip_address("10.1.0.1"))
    assert known.service_by_vip(*where, "one") == one
    assert known.service_by_vip(*where, "two") == two
    assert known.service_by_vip(*where, "three") == two
    assert known.service_by_vip(*where) == two
    known.apply((), [two.key])
    assert known.service_by_vip(*where, "three") == one


def test_namespace_visibility_vip_and_host() -> None:
    hidden = service("one", "svc.x", "10.1.0.1", namespace_only=True)
    known = inventory(hidden)
    where = ("", ip_address("10.1.0.1"))
    for client, found in (("one", hidden), ("two", None), ("", hidden)):
        assert known.service_by_vip(*where, client) == found
        assert known.service_by_hostname("svc.x", client) == found


def test_a_service_may_be_shown_to_some_namespaces() -> None:
    hidden = service("one", "svc.x", "10.1.0.1", shown_to=("one", "two"))
    known = inventory(hidden)
    for client, found in (("one", hidden), ("two", hidden), ("three", None), ("", hidden)):
        assert known.service_by_vip("", ip_address("10.1.0.1"), client) == found
        assert known.service_by_hostname("svc.x", client) == found


def test_visibility_filtered_exact_vip_falls_through_to_cidr() -> None:
    hidden = service("one", "exact.x", "10.1.0.1", namespace_only=True)
    wide = service("two", "wide.x", "10.0.0.0/8")
    known = inventory(hidden, wide)
    assert known.service_by_vip("", ip_address("10.1.0.1"), "two") == wide
    assert known.service_by_vip("", ip_address("10.1.0.1"), "one") == hidden


def test_exact_match_priority_over_cidr() -> None:
    exact, wide = service("one", "exact.x", "10.1.0.1"), service("two", "wide.x", "10.0.0.0/8", canonical=True)
    known = inventory(wide, exact)
    assert known.service_by_vip("", ip_address("10.1.0.1"), "two") == exact


@pytest.mark.parametrize(
    ("wide", "narrow", "inside", "beside"),
    [("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "10.2.0.1"), ("fd00::/8", "fd01::/16", "fd01::1", "fd02::1")],
    ids=["v4", "v6"],
)
def test_longest_prefix_match(wide: str, narrow: str, inside: str, beside: str) -> None:
    first, second = service("ns", "wide.x", wide), service("ns", "narrow.x", narrow)
    known = inventory(second, first)
    assert known.service_by_vip("", ip_address(inside)) == second
    assert known.service_by_vip("", ip_address(beside)) == first
    assert known.service_by_vip("", ip_address("192.0.2.1")) is None


def test_cidr_network_scoping() -> None:
    known = inventory(service("ns", "a.x", "10.0.0.0/8", network="net1"))
    assert known.service_by_vip("net2", ADDRESS) is None
    assert known.service_by_vip("net1", ADDRESS) is not None


def test_cidr_namespace_preferred_over_cidr_specificity() -> None:
    mine, narrow = service("mine", "mine.x", "10.0.0.0/8"), service("theirs", "theirs.x", "10.0.0.0/16", canonical=True)
    known = inventory(mine, narrow)
    assert known.service_by_vip("", ADDRESS, "mine") == mine
    assert known.service_by_vip("", ADDRESS, "other") == narrow


def test_cidr_remove_cleanup() -> None:
    known = inventory(service("ns", "a.x", "10.0.0.0/8", "0.0.0.0/0"))
    known.apply([service("ns", "a.x", "11.0.0.0/8")], ())
    assert known.service_by_vip("", ADDRESS) is None
    known.apply((), ["ns/a.x"])
    assert known.service_by_vip("", ip_address("11.0.0.1")) is None
    assert list(known.services()) == []


def test_a_vip_claimed_twice_by_one_service_is_removed_once() -> None:
    known = inventory(service("ns", "a.x", "10.0.0.0/8", "10.0.0.0/8", "10.0.0.1", "10.0.0.1"))
    known.apply((), ["ns/a.x"])
    assert known.service_by_vip("", ADDRESS) is None


def test_two_addresses_of_one_range_are_removed_with_it() -> None:
    """Whoever writes 10.0.0.1/8 and 10.0.0.2/8 has written 10.0.0.0/8 twice."""
    known = inventory(service("ns", "a.x", "10.0.0.1/8", "10.0.0.2/8"))
    known.apply([service("ns", "a.x", "10.0.0.1/8", "10.0.0.2/8")], ())
    assert known.service_by_vip("", ADDRESS) == service("ns", "a.x", "10.0.0.1/8", "10.0.0.2/8")
    known.apply([service("ns", "b.x", "10.0.0.9/8", "10.0.0.0/16")], ["ns/a.x"])
    assert known.service_by_vip("", ip_address("10.1.0.1")) == service("ns", "b.x", "10.0.0.9/8", "10.0.0.0/16")
    known.apply((), ["ns/b.x"])
    assert known.service_by_vip("", ADDRESS) is None


def test_cidr_services_see_workloads_that_came_later() -> None:
    known = inventory(service("ns", "svc.example", "10.9.0.0/16"))
    known.apply([pod()], ())
    found = known.service_by_vip("", ip_address("10.9.1.1"))
    assert found is not None
    assert uids(known.endpoints(found.key)) == ["K//Pod/ns/a"]


def test_hostnames_prefer_the_clients_namespace_then_canonical() -> None:
    a, b = service("a", "x"), service("b", "x", canonical=True)
    known = inventory(a, b)
    assert known.service_by_hostname("x", "a") == a
    assert known.service_by_hostname("x", "c") == b
    assert known.service_by_hostname("X", "a") is None


@pytest.mark.parametrize("vip", ["10.1.0.1", "10.1.0.0/16"])
def test_of_equal_services_all_nodes_choose_the_same_whichever_came_first(vip: str) -> None:
    a, b = service("a", "x", vip), service("b", "x", vip)
    for pair, chosen in (((a, b), a), ((a, replace(b, canonical=True)), replace(b, canonical=True))):
        for known in (inventory(*pair), inventory(*reversed(pair))):
            assert known.service_by_hostname("x", "c") == chosen == known.service_by_vip("", ip_address("10.1.0.1"), "c")


def test_a_pod_behind_a_service_is_found_by_its_name_while_it_is_an_endpoint() -> None:
    plain, all_of_them = service(), service(allow_unhealthy=True)
    ill = pod(healthy=False)
    assert inventory(plain, pod()).endpoint_of_pod(plain, "a") == pod()
    assert inventory(plain, ill).endpoint_of_pod(plain, "a") is None
    assert inventory(all_of_them, ill).endpoint_of_pod(all_of_them, "a") == ill
    assert inventory(plain, pod(services={})).endpoint_of_pod(plain, "a") is None
    assert inventory(plain, pod()).endpoint_of_pod(plain, "b") is None


def test_unknown_names_are_nothing_to_remove() -> None:
    known = inventory(pod())
    known.apply((), ["/10.0.0.1", "nothing", "a/b/c", ""])
    assert [one.uid for one in known.workloads()] == ["K//Pod/ns/a"]


THINGS: list[Workload | Service] = [
    service("ns", "svc.example", "10.1.0.1", "10.9.0.0/16"),
    service("two", "two.x", "10.1.0.1"),
    pod("a"),
    pod("b", addresses=(ip_address("10.0.0.2"),), healthy=False),
]


@given(st.permutations(THINGS), st.lists(st.sampled_from(THINGS), max_size=4), st.integers(0, 4))
def test_any_order_repeated_or_split_gives_the_same_answers(
    order: list[Workload | Service], again: list[Workload | Service], split: int
) -> None:
    known = Inventory()
    known.apply(order[:split], ())
    known.apply(again, [thing.uid if isinstance(thing, Workload) else thing.key for thing in again])
    known.apply(order, ())
    assert uids(known.endpoints(KEY)) == ["K//Pod/ns/a"]
    assert known.service_by_vip("", ip_address("10.1.0.1"), "two") == THINGS[1]
    assert known.service_by_vip("", ip_address("10.9.0.1")) == THINGS[0]
    assert known.workload_by_address("", ip_address("10.0.0.2")) == THINGS[3]
    known.apply((), [pod("a").uid, pod("b").uid, KEY, "two/two.x"])
    assert not any(vars(known)[index] for index in vars(known) if index != "_cidrs")


# --- policies


def policy(name: str, scope: Scope, namespace: str = "ns") -> Policy:
    return Policy(namespace, name, scope, Action.ALLOW)


def test_assert_rbac_with_dest_workload_info() -> None:
    store = PolicyStore()
    mine, theirs = policy("mine", Scope.NAMESPACE), policy("theirs", Scope.NAMESPACE, "other")
    everywhere, listed = policy("mesh", Scope.GLOBAL, "root"), policy("listed", Scope.WORKLOAD_SELECTOR)
    store.apply([mine, theirs, everywhere, listed, policy("unlisted", Scope.WORKLOAD_SELECTOR)], ())
    workload = pod(authorization_policies=("ns/listed", "ns/unknown", "other/theirs", "ns/mine"))
    assert {one.key for one in store.applicable(workload)} == {"ns/mine", "root/mesh", "ns/listed", "other/theirs"}
    assert len(store.applicable(workload)) == 4
    assert store.missing(workload) == ["ns/unknown"]


def test_rbac_change_scope() -> None:
    store = PolicyStore()
    workload, stranger = pod(), pod(namespace="other")
    store.apply([policy("p", Scope.GLOBAL)], ())
    assert len(store.applicable(stranger)) == 1
    store.apply([policy("p", Scope.NAMESPACE)], ())
    assert len(store.applicable(workload)) == 1
    assert list(store.applicable(stranger)) == []
    store.apply((), ["ns/p"])
    assert list(store.applicable(workload)) == []
    assert list(store.policies()) == []
