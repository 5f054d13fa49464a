"""Delta xDS without I/O: what each end says, from what it has and what it hears.

One stream carries several types, each a conversation of its own: the client asks once (with the versions it still holds),
the server answers with what is new, changed or gone, and every answer is acknowledged (ACK) or, with a reason, refused (NACK)
under its nonce. What was valid in a refused answer counts all the same. A client wants everything of a type (wildcard), or, on
demand, what it names: by resource name, or by an alias such as the address of a workload. Here are both ends:

- `DeltaClient` outlives its streams: what it retains makes the next stream cheap, and tells it what vanished meanwhile.
- `DeltaServer` is one stream. It has at most one unacknowledged answer per type outstanding; what happens meanwhile is told
  in one piece afterwards, so a slow client costs no memory and never sees a stale state twice.

Shells turn `Request` and `Response` into envoy.service.discovery.v3 messages and back.
"""

from mesh.delta.client import DeltaClient
from mesh.delta.messages import Request, Resource, Response, version_of
from mesh.delta.server import DeltaServer
from mesh.delta.snapshot import Snapshot

__all__ = ["DeltaClient", "DeltaServer", "Request", "Resource", "Response", "Snapshot", "version_of"]
