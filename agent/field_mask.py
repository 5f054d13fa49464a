"""Field masks on flows: what a client asked to see, and a little more.

Unknown paths are ignored, as newer clients name newer fields. Some fields are always sent, because clients up to 1.19.4 ask
for too little to print a policy verdict: more than was asked for is within the protocol.
"""

from collections.abc import Callable, Iterable

from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask

from mesh.proto import flow_pb2

ALWAYS = (
    "time",
    "node_name",
    "traffic_direction",
    "policy_match_type",
    "drop_reason_desc",
    "ingress_allowed_by",
    "egress_allowed_by",
    "ingress_denied_by",
    "egress_denied_by",
    "source_names",
    "destination_names",
)


def compile_mask(paths: Iterable[str]) -> Callable[[flow_pb2.Flow], flow_pb2.Flow]:
    """What to make of each flow: itself where no path is given, else a flow with the fields asked for."""
    asked = list(paths)
    if not asked:
        return lambda flow: flow
    known = {path for path in (*asked, *ALWAYS) if _resolves(flow_pb2.Flow.DESCRIPTOR, path)}
    # A parent includes its children; naming both is allowed, and FieldMask would refuse nothing but copy twice.
    mask = FieldMask(paths=sorted(path for path in known if not any(path.startswith(f"{other}.") for other in known)))

    def apply(flow: flow_pb2.Flow) -> flow_pb2.Flow:
        masked = flow_pb2.Flow()
        mask.MergeMessage(flow, masked)
        return masked

    return apply


def _resolves(descriptor: Descriptor, path: str) -> bool:
    name, _, rest = path.partition(".")
    field = descriptor.fields_by_name.get(name)
    if field is None:
        return False
    if not rest:
        return True
    singular = field.message_type is not None and field.has_presence
    return singular and _resolves(field.message_type, rest)
