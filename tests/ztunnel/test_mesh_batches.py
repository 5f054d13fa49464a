"""One push of the control plane, whatever its order: joined, and what is bad of it costs nothing else."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.delta import Resource
from mesh.resources import ADDRESS_TYPE, encode_service, encode_workload
from mesh.workload import Service, Workload
from tests.answers import update
from wire.mesh_cache import MeshCache
from ztunnel.channel import UpdateInventory, UpdatePolicies
from ztunnel.mesh_view import MeshView

pytestmark = pytest.mark.unit

SERVICE = Service("web", "demo", "web.demo.svc.cluster.local", ports={80: 8080})


def workload(number: int, healthy: bool = True) -> Workload:
    return Workload(f"K//Pod/demo/{number}", str(number), "demo", healthy=healthy, services={SERVICE.key: {}})


def resource(one: Workload | Service) -> Resource:
    if isinstance(one, Service):
        return Resource(one.key, "1", encode_service(one))
    return Resource(one.uid, "1", encode_workload(one))


@pytest.fixture
def told() -> list[UpdateInventory | UpdatePolicies]:
    """What workers are told."""
    return []


@pytest.fixture
def view(tmp_path: Path, told: list[UpdateInventory | UpdatePolicies]) -> MeshView:
    return MeshView(MeshCache(tmp_path / "mesh.sqlite"), told.append)


def apply(view: MeshView, *batch: Workload | Service | Resource, removals: tuple[str, ...] = ()) -> dict[str, str]:
    resources = tuple(one if isinstance(one, Resource) else resource(one) for one in batch)
    return dict(asyncio.run(view.take(update(ADDRESS_TYPE, resources, removals))))


def endpoints(view: MeshView) -> int:
    return len(view.inventory.endpoints(SERVICE.key))


def test_batch_groups_endpoints_per_service(view: MeshView, told: list[UpdateInventory | UpdatePolicies]) -> None:
    """The service in the middle of its workloads; and workers hear of it all in one message."""
    several = [workload(number) for number in range(50)]
    assert apply(view, *several[:25], SERVICE, *several[25:]) == {}
    assert endpoints(view) == 50 and view.inventory.staged() == {} and len(told) == 1


def test_batch_service_before_workloads(view: MeshView) -> None:
    apply(view, SERVICE, *map(workload, range(10)))
    assert endpoints(view) == 10


def test_batch_filters_unhealthy(view: MeshView) -> None:
    apply(view, SERVICE, workload(0), workload(1, healthy=False), workload(2))
    assert endpoints(view) == 2
    apply(view, replace(SERVICE, allow_unhealthy=True))
    assert endpoints(view) == 3


def test_batch_partial_failure(view: MeshView, told: list[UpdateInventory | UpdatePolicies]) -> None:
    bad = Resource("bad", "1", b"")
    assert apply(view, SERVICE, workload(0), bad, workload(1)) == {"bad": "unknown address type"}
    assert endpoints(view) == 2 and told == [UpdateInventory([SERVICE, workload(0), workload(1)], [])]


def test_remove_drops_endpoint(view: MeshView) -> None:
    apply(view, SERVICE, workload(0), workload(1))
    apply(view, removals=(workload(0).uid, "demo/unknown", "nonsense"))
    assert endpoints(view) == 1
