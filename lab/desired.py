"""From the cluster's objects to what should run on this machine: nodes, placed pods, services. Pure but for the ledger."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab.addresses import NodeAddresses, node_addresses, overlaps, pod_addresses
from lab.layout import RESERVED
from lab.ledger import Ledger, Placement
from lab.proxy import ROOT_NAMESPACE, foreign_command
from lab.wish import PodWish
from mesh.manifests import Namespace, Node, Object, Pod, Service, is_enrolled, named_networks, pods_of


@dataclass(slots=True)
class Desired:
    """What should run."""

    nodes: dict[str, NodeAddresses] = field(default_factory=dict)
    proxies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Per node the command that runs in place of weft's own proxy; empty: none does."""
    networks: dict[str, str] = field(default_factory=dict)
    """Per node the name of the network that it is on."""
    pods: dict[str, PodWish] = field(default_factory=dict)
    """By `namespace/name`."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Pods that cannot be placed -> why."""
    services: list[Service] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def desired(objects: Sequence[Object], ledger: Ledger, mesh: bool, new_uid: Callable[[], str], domain: str) -> Desired:
    """Place every pod, and remember where in the ledger. With `mesh` off nothing is enrolled."""
    result = Desired(services=[one for one in objects if isinstance(one, Service)])
    schedulable = _nodes([one for one in objects if isinstance(one, Node)], ledger, result)
    namespaces = {one.name: one for one in objects if isinstance(one, Namespace)}
    root, own = named_networks(objects, ROOT_NAMESPACE)
    result.networks = {name: own.get(name, root) for name in result.nodes}
    pods = {f"{pod.namespace}/{pod.name}": pod for pod in pods_of(objects)}
    for gone in ledger.pods.keys() - pods.keys():
        del ledger.pods[gone]
    load = Counter(placement.node for placement in ledger.pods.values())
    for key, pod in sorted(pods.items()):
        before = ledger.pods.get(key)
        try:
            placement = _place(pod, before, result, schedulable, load, new_uid)
            if placement != before:
                if before is not None:
                    load[before.node] -= 1
                load[placement.node] += 1
                ledger.pods[key] = placement
            enrol = mesh and is_enrolled(pod, namespaces.get(pod.namespace))
            result.pods[key] = _wish(key, pod, placement, result.nodes[placement.node], ledger, enrol, domain)
        except ValueError as error:
            ledger.pods.pop(key, None)
            result.waiting[key] = str(error)
    return result


def _nodes(nodes: Sequence[Node], ledger: Ledger, result: Desired) -> list[Node]:
    """Fill in the nodes; those that take pods without being named."""
    schedulable = []
    for node in sorted(nodes, key=lambda one: one.name):
        try:
            if node.name in RESERVED:
                raise ValueError(f"no node of a lab is called {node.name}: a part of the lab itself is")
            if "--" in node.name:
                raise ValueError("a lab's node must not have -- in its name: it parts node and pod in namespaces' names")
            addresses = node_addresses(ledger.node_index(node.name), node.pod_cidrs)
            proxy = foreign_command(node)
        except ValueError as error:
            result.problems.append(f"{node.title}: {error}")
            continue
        clashes = overlaps({**result.nodes, node.name: addresses})
        if clashes:
            result.problems += clashes
            continue
        result.nodes[node.name] = addresses
        result.proxies[node.name] = proxy
        if not node.unschedulable:
            schedulable.append(node)
    return schedulable


def _place(
    pod: Pod,
    before: Placement | None,
    result: Desired,
    schedulable: Sequence[Node],
    load: Counter[str],
    new_uid: Callable[[], str],
) -> Placement:
    spec = pod.spec
    digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode()).hexdigest()[:32]
    if spec.node_name and spec.node_name not in result.nodes:
        raise ValueError(f"spec.nodeName: there is no node {spec.node_name!r}: add a Node of this name")
    if before is not None and before.node in result.nodes and before.spec == digest:
        return before
    if spec.node_name:
        return Placement(new_uid(), spec.node_name, digest)
    fitting = [node.name for node in schedulable if spec.node_selector.items() <= node.labels.items()]
    if not fitting:
        wanted = " with the labels of its nodeSelector" if spec.node_selector else ""
        raise ValueError(f"there is no node{wanted} to run it on: add a Node")
    if before is not None and before.node in fitting:
        return Placement(new_uid(), before.node, digest)
    # The emptiest node, by name where several are: with equal nodes that is round robin.
    return Placement(new_uid(), min(fitting, key=lambda name: (load[name], name)), digest)


def _wish(key: str, pod: Pod, placement: Placement, node: NodeAddresses, ledger: Ledger, enrol: bool, domain: str) -> PodWish:
    if pod.spec.host_network:
        return PodWish(pod, placement.uid, placement.node, (), (), node.underlay, False, domain)
    addresses = pod_addresses(node.ranges, ledger.host_number(placement.node, key, node.ranges))
    return PodWish(pod, placement.uid, placement.node, addresses, node.ranges, node.underlay, enrol, domain)
