"""A control plane that says what a test puts in: delta ADS over TLS, inside the node's namespace, in the test's process."""

import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from mesh.policy import Policy
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, encode_policy, encode_service, encode_workload
from mesh.workload import Service, Workload
from tests.agent.node import Node
from wire.netns import entered, open_home

ADDRESS = "127.0.0.1:15012"


_News = queue.Queue[tuple[str, dict[str, bytes]] | None]


class ScriptedControl:
    """Serves resources to one agent; `put` reaches it at once."""

    def __init__(self, node: Node, authority: Any) -> None:
        key, certificate = authority.server("weft-control", "127.0.0.1")
        node.places.root.write_bytes(authority.root_pem)
        node.places.token.write_text("a-token")
        self._resources: dict[str, dict[str, bytes]] = {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}
        self._streams: list[_News] = []
        self._lock = threading.Lock()
        self.acknowledged: set[str] = set()
        """Types of which an agent has taken an answer in, and written it down."""
        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream, DeltaDiscoveryRequest.FromString, DeltaDiscoveryResponse.SerializeToString
        )
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        handlers = grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler})
        self._server.add_generic_rpc_handlers((handlers,))
        fd, home = os.open(Path(node.netns("node")), os.O_RDONLY), open_home()
        with entered(fd, home):
            self._server.add_secure_port(ADDRESS, grpc.ssl_server_credentials([(key, certificate)]))
        os.close(fd)
        os.close(home)
        self._server.start()

    def put(self, *resources: Workload | Service | Policy) -> None:
        """Add or replace resources."""
        for one in resources:
            if isinstance(one, Policy):
                kind, name, value = AUTHORIZATION_TYPE, one.key, encode_policy(one)
            elif isinstance(one, Workload):
                kind, name, value = ADDRESS_TYPE, one.uid, encode_workload(one)
            else:
                kind, name, value = ADDRESS_TYPE, one.key, encode_service(one)
            with self._lock:
                self._resources[kind][name] = value
                for news in self._streams:
                    news.put((kind, {name: value}))

    def stop(self) -> None:
        """End every stream."""
        for news in self._streams:
            news.put(None)
        self._server.stop(0).wait(60)

    def _stream(self, requests: Iterator[DeltaDiscoveryRequest], _: grpc.ServicerContext) -> Iterator[DeltaDiscoveryResponse]:
        news: _News = queue.Queue()

        def read() -> None:
            try:
                for request in requests:
                    with self._lock:
                        if request.response_nonce:
                            if not request.HasField("error_detail"):
                                self.acknowledged.add(request.type_url)
                        else:
                            news.put((request.type_url, dict(self._resources[request.type_url])))
            except grpc.RpcError:
                news.put(None)

        with self._lock:
            self._streams.append(news)
        threading.Thread(target=read, daemon=True).start()
        number = 0
        while (said := news.get()) is not None:
            kind, values = said
            number += 1
            response = DeltaDiscoveryResponse(type_url=kind, nonce=str(number))
            for name, value in values.items():
                resource = response.resources.add(name=name, version=str(number))
                resource.resource.type_url, resource.resource.value = kind, value
            yield response
