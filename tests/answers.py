"""What a control plane answers, as bytes and as updates."""

from collections.abc import Iterable

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as Message
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.delta import Resource
from wire.xds import Update
from wire.xds_response import read_response


def answer(type_url: str, resources: Iterable[Resource], removals: Iterable[str] = ()) -> bytes:
    """A delta xDS response."""
    messages = [
        Message(
            name=one.name, version=one.version, resource=AnyMessage(type_url=type_url, value=one.value), aliases=one.aliases
        )
        for one in resources
    ]
    return DeltaDiscoveryResponse(type_url=type_url, resources=messages, removed_resources=removals).SerializeToString()


def update(type_url: str, resources: Iterable[Resource], removals: Iterable[str] = ()) -> Update:
    """The same, as its consumer takes it."""
    body = answer(type_url, resources, removals)
    response = read_response(body)
    return Update(type_url, response.resources, response.removed, body)
