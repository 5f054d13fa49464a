"""A node's prober: `python -m lab.prober SOCKET` asks pods whether they are ready, as a kubelet does.

It runs in the node's network namespace and in the node's own cgroup `host`, so that its connections come from where a
kubelet's come from. `POST /probe` on SOCKET with `lab.readiness`'s order; the answer is `{"ready": .., "reason": ..}`.
"""

import asyncio
import http.client
import json
import sys
from pathlib import Path
from typing import Any

from wire.http_messages import Request, Response
from wire.http_server import HttpServer

_MAX_CONNECTIONS = 256


async def probe(request: Request) -> Response:
    """Make one attempt, bounded by the probe's own timeout."""
    order: dict[str, Any] = json.loads(request.body)
    host, port, timeout_s = str(order["address"]), int(order["port"]), float(order["timeout_s"])
    try:
        async with asyncio.timeout(timeout_s):
            if order["http_path"]:
                reason = await asyncio.to_thread(_get, order, host, port, timeout_s)
            else:
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                reason = ""
    except TimeoutError:
        reason = f"no answer from {host} port {port} within {timeout_s:g} s"
    except OSError as error:
        reason = f"{host} port {port}: {error.strerror or error}"
    except http.client.HTTPException as error:
        reason = f"{host} port {port} does not speak HTTP: {error!r}"
    return Response.json({"ready": not reason, "reason": reason})


def _get(order: dict[str, Any], host: str, port: int, timeout_s: float) -> str:
    path, headers = order["http_path"], {"user-agent": "weft-lab/probe"}
    if order["http_host"]:
        headers["host"] = order["http_host"]
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if 200 <= status < 400 else f"GET {path} on port {port} answered {status}"


if __name__ == "__main__":
    asyncio.run(HttpServer({"POST /probe": probe}, _MAX_CONNECTIONS).serve(Path(sys.argv[1])))
