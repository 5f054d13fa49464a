"""What the lab makes of what control says."""

import pytest

from lab.control_link import in_step
from mesh.proto.control_pb2 import ConnectedNode
from wire.xds import NodeMetadata

pytestmark = pytest.mark.unit


def stream(role: str, acked: bool, node: str = "n1") -> ConnectedNode:
    identity = NodeMetadata(role, f"{role}-{node}", "weft-system", "10.0.0.1", node, "Kubernetes")
    return ConnectedNode(node=node, client=identity.to_proto().id, acked=acked)


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ([], {}),
        ([stream("agent", True)], {"n1": False}),  # its proxy may serve what was on its disk
        ([stream("agent", True), stream("ztunnel", True)], {"n1": True}),
        ([stream("agent", False), stream("ztunnel", True)], {"n1": False}),
        ([stream("agent", True), stream("ztunnel", True), stream("ztunnel", False)], {"n1": False}),
        ([stream("agent", True), stream("ztunnel", True, "n2")], {"n1": False, "n2": True}),
    ],
)
def test_a_node_is_in_step_when_its_proxy_is_too(streams: list[ConnectedNode], expected: dict[str, bool]) -> None:
    assert in_step(streams) == expected
