"""Requests and responses of delta xDS to and from their messages; what several streams are told alike is encoded once."""

from weakref import WeakValueDictionary

from envoy.service.discovery.v3 import discovery_pb2

from mesh.delta import Request, Response


def from_proto(request: discovery_pb2.DeltaDiscoveryRequest) -> Request:
    """A request as `control.stream` takes it."""
    return Request(
        request.type_url,
        tuple(request.resource_names_subscribe),
        tuple(request.resource_names_unsubscribe),
        dict(request.initial_resource_versions),
        request.response_nonce,
        request.error_detail.message if request.HasField("error_detail") else None,
    )


class Content:
    """The resources of a response, as they travel; aliases only to who asks by name."""

    __slots__ = ("__weakref__", "data", "resources")

    def __init__(self, response: Response) -> None:
        self.resources = response.resources
        message = discovery_pb2.DeltaDiscoveryResponse()
        for resource in response.resources:
            aliases = resource.aliases if response.by_name else ()
            added = message.resources.add(name=resource.name, version=resource.version, aliases=aliases)
            added.resource.type_url = response.type_url
            added.resource.value = resource.value
        self.data: bytes = message.SerializeToString()


class Contents:
    """Content by type, for as long as any stream holds it: a large mesh is told to all of them at one moment."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[tuple[str, bool], Content] = WeakValueDictionary()

    def of(self, response: Response) -> Content:
        """The content of a response."""
        kind = (response.type_url, response.by_name)
        content = self._held.get(kind)
        if content is None or content.resources != response.resources:
            content = self._held[kind] = Content(response)
        return content


def to_wire(response: Response, content: Content, version: str) -> bytes:
    """A response as it travels. A message is what its parts are, one after the other."""
    head = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version,
        type_url=response.type_url,
        nonce=response.nonce,
        removed_resources=response.removed,
    )
    return bytes(head.SerializeToString()) + content.data
