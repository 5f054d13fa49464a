"""ZDS packets, to bytes and back: one protobuf message each, without framing (Istio's node-agent protocol)."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from mesh.proto import zds_pb2

MAX_PACKET_BYTES = 64 << 10
"""Acks carry a text; a ztunnel with backtraces on sends a kilobyte of it, and the limit leaves room for more."""
_MAX_REASON = 2048


@dataclass(frozen=True, slots=True)
class Announcement:
    """A pod as the proxy is told of it; the descriptor of its namespace travels beside."""

    uid: str
    namespace: str
    name: str
    service_account: str


def add(pod: Announcement) -> bytes:
    """Serve this pod; goes with exactly one descriptor."""
    info = zds_pb2.WorkloadInfo(name=pod.name, namespace=pod.namespace, service_account=pod.service_account)
    return _request(add=zds_pb2.AddWorkload(uid=pod.uid, workload_info=info))


def keep(uid: str) -> bytes:
    """Go on serving this pod, whose namespace the agent does not hold; only before the end of a snapshot."""
    return _request(keep=zds_pb2.KeepWorkload(uid=uid))


def delete(uid: str) -> bytes:
    """Stop serving this pod."""
    return _request(**{"del": zds_pb2.DelWorkload(uid=uid)})


def snapshot_sent() -> bytes:
    """That was all: stop serving what was not named."""
    return _request(snapshot_sent=zds_pb2.SnapshotSent())


def parse_hello(packet: bytes) -> None:
    """Accept a proxy's first packet; its version is not compared, as Istio's agent does not.

    Raises: ValueError for what is no hello.
    """
    try:
        zds_pb2.ZdsHello.FromString(packet)
    except DecodeError as error:
        raise ValueError(f"not a hello: {packet[:40].hex()}") from error


def parse_ack(packet: bytes) -> str:
    """The reason in an acknowledgement, empty for success.

    Raises: ValueError for any other packet.
    """
    try:
        response = zds_pb2.WorkloadResponse.FromString(packet)
    except DecodeError as error:
        raise ValueError(f"not an acknowledgement: {packet[:40].hex()}") from error
    if not response.HasField("ack"):
        raise ValueError(f"no acknowledgement in {packet[:40].hex()}")
    return str(response.ack.error)[:_MAX_REASON]


def _request(**payload: object) -> bytes:
    return bytes(zds_pb2.WorkloadRequest(**payload).SerializeToString())
