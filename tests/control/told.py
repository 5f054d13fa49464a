"""What a proxy knows that control told everything: objects and reports in, an inventory out, by way of the wire's bytes."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from control.index import Index
from control.reports import PodReport
from control.workloads import MeshNames
from mesh.inventory import Inventory
from mesh.manifests import parse
from mesh.resources import decode_address, encode_service, encode_workload


def running(name: str, address: str, node: str = "n1") -> PodReport:
    """A pod of namespace demo that is in the mesh."""
    addresses = (ip_address(address),)
    return PodReport("demo", name, "lab", f"uid-{name}", node, addresses, ready=True, enrolled=True, phase="Running")


def indexed(manifests: str, reports: Iterable[PodReport], vips: Mapping[str, str]) -> Index:
    """Control's state; `vips` by `namespace/name` of services."""
    index = Index(MeshNames(), (ip_network("10.96.0.0/16"),))
    index.replace_reports({one.key: one for one in reports}, ())
    replace(index, manifests, vips)
    return index


def replace(index: Index, manifests: str, vips: Mapping[str, str]) -> None:
    """Make other manifests current."""
    found = parse({"all": manifests})
    assert not found.refused, found.problems
    index.replace_objects(found.objects, {name: (ip_address(vip),) for name, vip in vips.items()})


def told(index: Index) -> Inventory:
    """What proxies know of it."""
    inventory = Inventory()
    sent = [encode_workload(one) for one in index.workloads.nouns.values()]
    sent += [encode_service(one) for one in index.services.nouns.values()]
    inventory.apply([decode_address(one) for one in sent], [])
    return inventory
