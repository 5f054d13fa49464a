"""The admin endpoints of a node's foreign proxy, where weft's commands look for them: `python -m lab.admin_relay SOCKET`.

Istio's ztunnel answers on TCP ports of its node's namespace, where this runs. What it has not is not there: its flows.
"""

import asyncio
import sys
from pathlib import Path

from wire.http_client import request
from wire.http_messages import HttpError, Request, Response
from wire.http_server import Handler, HttpServer

_PORTS = {"/config_dump": 15000, "/metrics": 15020, "/healthz/ready": 15021}
_TIMEOUT_S = 5.0


def _relayed(path: str) -> Handler:
    async def relay(_: Request) -> Response:
        try:
            reply = await request(("127.0.0.1", _PORTS[path]), "GET", path, timeout_s=_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise HttpError(502, f"the proxy does not answer on port {_PORTS[path]}: {error or 'too late'}") from error
        return Response(reply.status, reply.body, reply.headers.get("content-type", "text/plain"))

    return relay


if __name__ == "__main__":
    asyncio.run(HttpServer({f"GET {path}": _relayed(path) for path in _PORTS}).serve(Path(sys.argv[1])))
