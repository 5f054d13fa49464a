"""What the agent takes in of control's answers."""

import asyncio
from pathlib import Path

import pytest

from agent.agent_events import AgentEvents
from agent.mesh_view import MeshView
from agent.pod import PodRequest
from mesh.delta import Resource
from mesh.identity import Identity
from mesh.proto import authorization_pb2, workload_pb2
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.answers import update
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.unit


def test_a_type_that_nobody_asked_for_is_no_policy(tmp_path: Path) -> None:
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    deny = authorization_pb2.Authorization(name="deny", namespace="shop", action=authorization_pb2.DENY).SerializeToString()
    other = "type.googleapis.com/istio.workload.Other"
    asyncio.run(view.take(update(AUTHORIZATION_TYPE, [Resource("shop/deny", "1", deny)])))
    before = list(view.policies.policies())
    assert [one.key for one in before] == ["shop/deny"]
    assert not asyncio.run(view.take(update(other, [Resource("shop/more", "1", deny)], ["shop/deny"])))
    assert list(view.policies.policies()) == before


def test_a_pod_is_of_its_meshs_trust_domain_also_before_control_tells_of_it(tmp_path: Path) -> None:
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    web, db = (PodRequest(name, "shop", name, name, "") for name in ("web", "db"))
    assert view.identity_of(web, "node-a") == Identity("cluster.local", "shop", "web")
    told = workload_pb2.Workload(uid="c//Pod/shop/web", name="web", namespace="shop", service_account="web", node="node-a")
    told.trust_domain = "shop.example"
    asyncio.run(
        view.take(update(ADDRESS_TYPE, [Resource(told.uid, "1", workload_pb2.Address(workload=told).SerializeToString())]))
    )
    assert view.identity_of(web, "node-a") == Identity("shop.example", "shop", "web")
    assert view.identity_of(db, "node-a") == Identity("shop.example", "shop", "db")
