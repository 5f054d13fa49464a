"""A delta xDS response as it came, read when somebody looks: all resources of a large mesh at once are more than it."""

from collections.abc import Iterator, Sequence
from sys import intern
from typing import overload

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as Message
from google.protobuf.message import DecodeError

from mesh.delta import Resource, Response
from mesh.undecoded import rule_out_memory


class _Resources(Sequence[Resource]):
    """The resources of a message, made anew for whoever looks at them."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Resource: ...

    @overload
    def __getitem__(self, index: slice) -> list[Resource]: ...

    def __getitem__(self, index: int | slice) -> Resource | list[Resource]:
        if isinstance(index, slice):
            return list(map(read_resource, self._messages[index]))
        return read_resource(self._messages[index])

    def __iter__(self) -> Iterator[Resource]:
        return map(read_resource, self._messages)


def read_resource(message: Message) -> Resource:
    """One resource of a message."""
    aliases = message.aliases
    return Resource(intern(message.name), message.version, message.resource.value, tuple(aliases) if aliases else ())


def read_response(body: bytes) -> Response:
    """Read a response.

    Raises: ValueError for what is none; MemoryError.
    """
    try:
        message = DeltaDiscoveryResponse.FromString(body)
    except DecodeError as error:
        rule_out_memory(error)
        raise ValueError(f"not a DeltaDiscoveryResponse: {error}") from error
    versions, value_bytes = {}, 0
    for one in message.resources:
        versions[intern(one.name)] = one.version
        value_bytes += len(one.resource.value)
    return Response(
        message.type_url,
        _Resources(message.resources),
        tuple(message.removed_resources),
        message.nonce,
        versions=versions,
        value_bytes=value_bytes,
    )
