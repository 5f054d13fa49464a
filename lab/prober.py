"""A node's prober: `python -m lab.prober SOCKET` asks pods whether they are ready, as a kubelet does.

It runs in the node's network namespace and in the node's own cgroup `host`, so that its connections come from where a
kubelet's come from. `POST /probe` on SOCKET with `lab.readiness`'s order; the answer is `{"ready": .., "reason": ..}`.
"""

import asyncio
import json
import re
import string
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wire.http_messages import Request, Response
from wire.http_server import HttpServer

_MAX_CONNECTIONS = 256
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})\b")


async def probe(request: Request) -> Response:
    """Make one attempt, bounded by the probe's own timeout."""
    order: dict[str, Any] = json.loads(request.body)
    host, port, timeout_s = str(order["address"]), int(order["port"]), float(order["timeout_s"])
    try:
        async with asyncio.timeout(timeout_s):
            if order["http_path"]:
                reason = await _get(host, port, order["http_path"], order["http_host"])
            else:
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                reason = ""
    except TimeoutError:
        reason = f"no answer from {host} port {port} within {timeout_s:g} s"
    except OSError as error:
        reason = f"{host} port {port}: {error.strerror or error}"
    except ValueError as error:
        reason = f"{host} port {port} does not speak HTTP: {error}"
    return Response.json({"ready": not reason, "reason": reason})


async def _get(host: str, port: int, path: str, http_host: str) -> str:
    """Why the answer is none of success. Raises: ValueError for what is no answer; OSError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        where = http_host or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        head = [f"GET {quote(path, safe=string.punctuation)} HTTP/1.1", f"host: {' '.join(where.split())}"]
        writer.write("\r\n".join([*head, "user-agent: weft-lab/probe", "connection: close", "", ""]).encode())
        line = await reader.readline()
    finally:
        writer.close()
    found = _STATUS.match(line)
    if found is None:
        raise ValueError(f"it says {line[:40]!r}")
    return "" if 200 <= int(found[1]) < 400 else f"GET {path} on port {port} answered {int(found[1])}"


if __name__ == "__main__":
    asyncio.run(HttpServer({"POST /probe": probe}, _MAX_CONNECTIONS).serve(Path(sys.argv[1])))
