"""gRPC servers on unix sockets that only the right people can reach."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

STOP_GRACE_S = 1.0
_MAX_MESSAGE_BYTES = 4 << 20
_MAX_STREAMS = 256


async def serve(path: Path, mode: int, services: Iterable[str], register: Callable[[grpc.aio.Server], None]) -> grpc.aio.Server:
    """Start a server at `path`, in place of what is there, with health (of `services` and of the whole) and reflection.

    Raises: RuntimeError when the path cannot be bound.
    """
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), ("grpc.max_concurrent_streams", _MAX_STREAMS)]
    )
    register(server)
    names = list(services)
    states = health.aio.HealthServicer()
    for name in (*names, ""):
        await states.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    _bind(server, path, mode)
    await server.start()
    return server


def _bind(server: grpc.aio.Server, path: Path, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    before = os.umask(0o777 & ~mode)  # the socket is born with its mode: nobody connects in between
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(before)
