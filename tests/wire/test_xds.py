"""The xDS client against a real gRPC server over TLS: what it says byte for byte, and that it comes back with what it holds."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict

from mesh import delta
from tests.ports import unused_port
from wire import grpc_tls, xds
from wire.grpc_tls import Endpoint
from wire.xds import NodeMetadata, Update, XdsClient
from wire.xds_response import read_response

pytestmark = pytest.mark.unit

ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
ACK_N1 = "122a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e4164647265737332026e31"
NACK_N5 = (
    "122a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e4164647265737332026e353abd0112ba014b2f2f506f642f667a"
    "2f62313a206661696c656420746f20706172736520616464726573732c2068616420332062797465733b204b2f2f506f642f667a2f62323a20756e6b6e6f77"
    "6e20656e756d3a20756e737570706f727465642074756e6e656c2070726f746f636f6c3a206c656761637920697374696f206d746c733b204b2f2f506f642f"
    "667a2f62333a206661696c656420746f207061727365206e616d6573706163656420686f73746e616d653a206e6f736c617368"
)
BAD = {
    "K//Pod/fz/b1": "failed to parse address, had 3 bytes",
    "K//Pod/fz/b2": "unknown enum: unsupported tunnel protocol: legacy istio mtls",
    "K//Pod/fz/b3": "failed to parse namespaced hostname: noslash",
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake takes the time that it takes: one that is given up is told in other words, and one more pause."""
    monkeypatch.setattr(grpc_tls, "_CONNECT_MS", 60_000)


class Control:
    """A control plane played by hand: every stream's raw requests arrive in a queue, and a queue of responses leaves.

    The newest stream's: an older one may not have heard yet that its client is gone, and would take what is not for it.
    """

    options: tuple[tuple[str, int], ...] = ()

    def __init__(self, authority: Any, tmp_path: Path) -> None:
        self.credentials = grpc.ssl_server_credentials([authority.server("127.0.0.1")])
        self.requests: asyncio.Queue[bytes] = asyncio.Queue()
        self.responses: asyncio.Queue[DeltaDiscoveryResponse | None] = asyncio.Queue()
        self.metadata: list[dict[str, str]] = []
        self.port = unused_port()  # listened at again after a break in which clients dial it
        self.refusal = ""
        (tmp_path / "root.pem").write_bytes(authority.root_pem)
        (tmp_path / "token").write_text("one")
        self.tmp_path = tmp_path

    async def start(self) -> None:
        self.server = grpc.aio.server(options=self.options)
        handler = grpc.stream_stream_rpc_method_handler(
            self.stream, response_serializer=DeltaDiscoveryResponse.SerializeToString
        )
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler}),)
        )
        self.server.add_secure_port(f"127.0.0.1:{self.port}", self.credentials)
        await self.server.start()

    async def meet(self, client: XdsClient) -> "asyncio.Future[None]":
        """Start, and run the client until its first two requests are read."""
        await self.start()
        running = asyncio.ensure_future(client.run())
        for _ in range(2):
            await self.request()
        return running

    async def end(self, running: "asyncio.Future[None]") -> None:
        """Of a client that runs, and of this server."""
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await self.server.stop(None)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
        if self.refusal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        if self.metadata:
            self.responses = asyncio.Queue()
        responses = self.responses
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})

        async def collect() -> None:
            async for request in requests:
                self.requests.put_nowait(request)

        collecting = asyncio.ensure_future(collect())
        try:
            while (response := await responses.get()) is not None:
                yield response
        finally:
            collecting.cancel()

    async def request(self) -> DeltaDiscoveryRequest:
        return DeltaDiscoveryRequest.FromString(await self.requests.get())

    def respond(
        self,
        type_url: str,
        nonce: str,
        resources: Mapping[str, str],
        removed: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
    ) -> None:
        found = [
            Resource(name=name, version=v, resource=AnyMessage(value=name.encode()), aliases=aliases)
            for name, v in resources.items()
        ]
        self.responses.put_nowait(
            DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, resources=found, removed_resources=removed)
        )

    def client(self, on_update: Any, retained: Any = None, *on_demand: Any) -> XdsClient:
        endpoint = Endpoint(
            f"127.0.0.1:{self.port}",
            self.tmp_path / "root.pem",
            self.tmp_path / "token",
            "Kubernetes",
            headers={"x-first": "1"},
        )
        node = NodeMetadata("ztunnel", "app", "fz", "10.77.0.2", "nz", "Kubernetes", {"FOO": "bar", "J": {"x": [1]}})
        return XdsClient(endpoint, node, (ADDRESS, AUTHORIZATION), on_update, retained, *on_demand)


class Refusing(Control):
    """Ends streams with an error, where others end them in order."""

    def __init__(self, authority: Any, tmp_path: Path, code: grpc.StatusCode, words: str) -> None:
        super().__init__(authority, tmp_path)
        self._end = code, words

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
        async for response in super().stream(requests, context):
            yield response
        await context.abort(*self._end)


async def accept(_: Update) -> Mapping[str, str]:
    """What every update is to a client that has nothing against any."""
    return {}


def test_a_conversation_across_a_break(authority: Any, eventually: Any, tmp_path: Path) -> None:
    updates: list[Update] = []

    async def on_update(update: Update) -> Mapping[str, str]:
        updates.append(update)
        return {resource.name: BAD[resource.name] for resource in update.upserts if resource.name in BAD}

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        client = control.client(on_update)
        running = asyncio.ensure_future(client.run())
        first, second = await control.request(), await control.request()
        assert (first.type_url, second.type_url) == (ADDRESS, AUTHORIZATION)
        assert first.node.id == "ztunnel~10.77.0.2~app.fz~fz.svc.cluster.local"
        assert MessageToDict(first.node.metadata) == {
            "NAME": "app", "NAMESPACE": "fz", "INSTANCE_IPS": "10.77.0.2", "NODE_NAME": "nz", "CLUSTER_ID": "Kubernetes",
            "FOO": "bar", "J": {"x": [1.0]},
        }  # fmt: skip
        assert not first.resource_names_subscribe and not first.resource_names_unsubscribe and not first.response_nonce
        assert not client.ready and not client.status.connected

        control.respond(ADDRESS, "n1", {"K//Pod/fz/app": "v1", "K//Pod/fz/gone": "v1"})
        assert (await control.requests.get()).hex() == ACK_N1
        control.respond(AUTHORIZATION, "n2", {})
        assert (await control.request()).response_nonce == "n2"
        await eventually(lambda: client.ready)
        control.respond(ADDRESS, "n5", {"K//Pod/fz/g": "v1", **dict.fromkeys(BAD, "v1")}, ("K//Pod/fz/gone",))
        assert (await control.requests.get()).hex() == NACK_N5
        assert updates[-1].upserts[0].name == "K//Pod/fz/g" and updates[-1].removals == ("K//Pod/fz/gone",)
        assert updates[-1].upserts[0].value == b"K//Pod/fz/g" and client.status.connected

        (tmp_path / "token").write_text("two")  # before the break: an attempt that is under way at its end has read it, too
        await control.server.stop(None)
        await eventually(lambda: not client.status.connected)
        assert "unavailable" in client.status.last_error
        await control.start()
        again = await control.request()
        assert again.node.id and dict(again.initial_resource_versions) == {"K//Pod/fz/app": "v1", "K//Pod/fz/g": "v1"}
        assert (await control.request()).type_url == AUTHORIZATION
        control.respond(ADDRESS, "n1", {})
        assert (await control.request()).response_nonce == "n1"
        assert client.status.connected and not client.status.last_error
        assert client.versions(ADDRESS) == {"K//Pod/fz/app": "v1", "K//Pod/fz/g": "v1"}

        control.responses.put_nowait(None)
        assert (await control.request()).initial_resource_versions, "after a clean end at once, or nearly"
        assert [row["authorization"] for row in control.metadata] == ["Bearer one", "Bearer two", "Bearer two"]
        assert (control.metadata[0]["x-first"], control.metadata[0]["clusterid"]) == ("1", "Kubernetes")
        assert client.status.terminations["Reconnect"] == client.status.terminations["Complete"] == 1
        assert client.status.messages == {ADDRESS: 3, AUTHORIZATION: 1}
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_what_is_no_response_is_named_so() -> None:
    with pytest.raises(ValueError, match="not a DeltaDiscoveryResponse"):
        read_response(b"\xff")


def test_a_foreign_server_is_not_spoken_to_and_mended_files_are_read(
    authority: Any, other_authority: Any, eventually: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        (tmp_path / "root.pem").write_bytes(other_authority.root_pem)
        client = control.client(accept, {ADDRESS: [delta.Resource("K//Pod/fz/app", "v7", b"")]})
        running = asyncio.ensure_future(client.run())
        await eventually(lambda: client.status.terminations["ConnectionError"] > 2)
        assert "unavailable" in client.status.last_error and control.requests.empty()
        (tmp_path / "root.pem").unlink()
        await eventually(lambda: "root.pem: No such file" in client.status.last_error)
        (tmp_path / "root.pem").write_bytes(authority.root_pem)
        assert dict((await control.request()).initial_resource_versions) == {"K//Pod/fz/app": "v7"}, "from an earlier run"
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert "next attempt within 0.01 s" in caplog.text and "next attempt within 0.02 s" in caplog.text
    warnings = [record.getMessage().partition("; next")[0] for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(set(warnings)) == 2, "the same words once"


def test_a_stream_that_ends_while_its_update_is_taken_in_is_opened_again(
    authority: Any, eventually: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        control = Control(authority, tmp_path)

        async def on_update(_: Update) -> Mapping[str, str]:
            await control.server.stop(None)
            await asyncio.sleep(0.1)  # the end of the stream arrives before the answer to its update leaves
            return {}

        client = control.client(on_update)
        running = await control.meet(client)
        control.respond(ADDRESS, "n1", {"K//Pod/fz/app": "v1"})
        await eventually(lambda: running.done() or client.status.terminations.total() > 0)
        assert not running.done(), running.exception()
        await control.start()
        assert dict((await control.request()).initial_resource_versions) == {"K//Pod/fz/app": "v1"}
        assert not running.done()
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_server_that_refuses_or_says_nothing_is_given_up_with_the_reason(
    authority: Any, eventually: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "_PATIENCE_S", 0.05)

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        client = control.client(accept)
        running = asyncio.ensure_future(client.run())
        await eventually(lambda: client.status.last_error == "no answer within 0.05 s")
        monkeypatch.setattr(xds, "_PATIENCE_S", 60)  # a refusal takes the time that it takes
        control.refusal = "node token names another node"
        await eventually(lambda: client.status.last_error == "permission denied: node token names another node")
        assert not client.status.connected and not running.done()
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_server_that_does_not_hear_what_is_held_is_given_up(
    authority: Any, eventually: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "_PATIENCE_S", 0.2)
    held = [delta.Resource(f"Kubernetes//Pod/demo/web-{number}", "v" * 64, b"") for number in range(50_000)]

    class Deaf(Control):
        async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
            while (response := await self.responses.get()) is not None:
                yield response

    async def scenario() -> None:
        control = Deaf(authority, tmp_path)
        await control.start()
        client = control.client(accept, {ADDRESS: held})
        running = asyncio.ensure_future(client.run())
        await eventually(lambda: client.status.last_error == "no answer within 0.2 s")
        assert not running.done()
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("answers", "demands"), [(200, 0), (1, 4000)])
def test_a_server_that_hears_no_more_is_given_up(
    authority: Any,
    eventually: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answers: int,
    demands: int,
) -> None:
    """What it says, it says; but our answers to that, and what we ask for, are more than a window takes."""

    async def on_update(update: Update) -> Mapping[str, str]:
        monkeypatch.setattr(xds, "_PATIENCE_S", 0.5)  # not before: who is only slow is no less deaf
        return dict.fromkeys([one.name for one in update.upserts], "no" * 2000)

    class Deaf(Control):
        options = (("grpc.http2.bdp_probe", 0),)  # else it takes megabytes unread

        async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
            for number in range(answers):
                bad = Resource(name="fz/bad", version=str(number))
                yield DeltaDiscoveryResponse(type_url=AUTHORIZATION, nonce=f"n{number}", resources=[bad])
            await self.responses.get()

    async def scenario() -> None:
        control = Deaf(authority, tmp_path)
        await control.start()
        client = control.client(on_update, None, (ADDRESS,))
        running = asyncio.ensure_future(client.run())
        await eventually(lambda: client.status.messages[AUTHORIZATION])
        client.demand(ADDRESS, [f"fz/{number}" + "x" * 200 for number in range(demands)])
        await eventually(lambda: "nothing was read for 0.5 s" in caplog.text)
        assert not running.done()
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_an_update_is_taken_in_whole_though_its_server_is_given_up_meanwhile(
    authority: Any, eventually: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = asyncio.Event()
    taken: list[str] = []

    async def on_update(update: Update) -> Mapping[str, str]:
        taken.append("begun")
        await given_up.wait()
        taken.append("whole")
        return {}

    class Deaf(Control):
        options = (("grpc.http2.bdp_probe", 0),)

        async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
            yield DeltaDiscoveryResponse(type_url=AUTHORIZATION, nonce="n", resources=[Resource(name="fz/one", version="1")])
            try:
                await self.responses.get()
            finally:
                given_up.set()

    async def scenario() -> None:
        control = Deaf(authority, tmp_path)
        await control.start()
        client = control.client(on_update, None, (ADDRESS,))
        running = asyncio.ensure_future(client.run())
        await eventually(lambda: taken)
        monkeypatch.setattr(xds, "_PATIENCE_S", 0.5)  # not before: only now is there an update that is being taken in
        client.demand(ADDRESS, [f"fz/{number}" + "x" * 200 for number in range(4000)])
        await eventually(lambda: client.status.terminations["Error"])
        assert taken[:2] == ["begun", "whole"] and not running.done()
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (KeyError("not known"), "internal error: KeyError('not known')"),
        (MemoryError(), "no memory is left to take an update in: raise"),
    ],
)
def test_a_consumer_that_fails_is_told_again_and_not_in_a_hurry(
    authority: Any,
    tmp_path: Path,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    said: str,
) -> None:
    monkeypatch.setattr(xds, "random", lambda: 1.0)
    failing = [True, True, True]
    taken: list[str] = []

    async def on_update(update: Update) -> Mapping[str, str]:
        if failing and update.type_url == AUTHORIZATION:
            failing.pop()
            raise failure
        taken.extend(one.name for one in update.upserts)
        return {}

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        client = control.client(on_update)
        running = asyncio.ensure_future(client.run())
        for attempt in range(4):
            first, second = await control.request(), await control.request()
            assert list(first.initial_resource_versions) == ["K//Pod/fz/app"][: len(taken)]
            held = {"fz/deny": "broken off"} if attempt else {}
            assert dict(second.initial_resource_versions) == held, "what failed may be held, but not for sure"
            if not attempt:
                control.respond(ADDRESS, "n1", {"K//Pod/fz/app": "v1"})
                assert (await control.request()).response_nonce == "n1"
            if attempt < 3:
                control.respond(AUTHORIZATION, "n2", {"fz/deny": "v1"})
        assert not client.status.connected and client.status.last_error.startswith(said)
        assert dict(client.status.terminations) == {"Error": 3}
        assert client._pause_s == 8 * xds._FIRST_PAUSE_S, "each time it waits longer, though each stream delivered something"
        control.respond(AUTHORIZATION, "n3", {"fz/deny": "v1"})
        assert (await control.request()).response_nonce == "n3" and taken == ["K//Pod/fz/app", "fz/deny"]
        told_whole = any(record.exc_info for record in caplog.records if record.name == "wire.xds")
        assert client.status.connected and told_whole is isinstance(failure, KeyError)
        assert not running.done()
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_what_is_said_outright_needs_no_file_and_either_name_of_the_server_will_do(authority: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        for name in ("127.0.0.1", "somebody.else"):
            endpoint = Endpoint(
                f"127.0.0.1:{control.port}", authority.root_pem, "inline", "Kubernetes", name, {"b": "2", "a": "1"}
            )
            client = XdsClient(endpoint, NodeMetadata("ztunnel", "app", "fz", "10.77.0.2", "nz", "K"), [ADDRESS], accept)
            running = asyncio.ensure_future(client.run())
            assert (await control.request()).type_url == ADDRESS
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert control.metadata[-1]["authorization"] == "Bearer inline"
        ours = [key for key in control.metadata[-1] if key in ("a", "b", "authorization", "clusterid")]
        assert ours == ["b", "a", "authorization", "clusterid"], "further headers come first"
        await control.server.stop(None)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(
    ("code", "words", "reason", "doublings"),
    [
        (grpc.StatusCode.UNAVAILABLE, "no", "Error", 3),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", "Error", 3),
        (grpc.StatusCode.UNAVAILABLE, "transport is closing", "Reconnect", 1),
        (grpc.StatusCode.UNAVAILABLE, "closing transport: received prior goaway", "Reconnect", 1),
        (grpc.StatusCode.CANCELLED, "", "Reconnect", 1),
        (grpc.StatusCode.UNKNOWN, "", "Reconnect", 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", "Reconnect", 1),
    ],
)
def test_who_answers_and_refuses_at_once_is_left_in_peace_and_who_is_cut_off_is_asked_again(
    authority: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: grpc.StatusCode,
    words: str,
    reason: str,
    doublings: int,
) -> None:
    monkeypatch.setattr(xds, "_LASTED_S", 3600.0)

    async def scenario() -> None:
        control = Refusing(authority, tmp_path, code, words)
        client = control.client(accept)
        running = await control.meet(client)
        for _ in range(3):
            control.respond(ADDRESS, "n", {})
            assert (await control.request()).response_nonce == "n"
            control.responses.put_nowait(None)
            for _ in range(2):
                await control.request()
        assert dict(client.status.terminations) == {reason: 3}
        assert client._pause_s == 2**doublings * xds._FIRST_PAUSE_S
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_who_ends_stream_after_stream_at_once_is_asked_less_and_less(
    authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the first time: one that is replaced may have come just before."""
    monkeypatch.setattr(xds, "_LASTED_S", 3600.0)

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        client = control.client(accept)
        client._pause_s = 64 * xds._FIRST_PAUSE_S
        running = await control.meet(client)
        for answers, doublings in ((True, 1), (True, 2), (True, 3), (False, 4), (True, 1), (True, 2)):
            if answers:
                control.respond(ADDRESS, "n", {})
                assert (await control.request()).response_nonce == "n"
            control.responses.put_nowait(None)
            for _ in range(2):
                await control.request()
            assert client._pause_s == 2**doublings * xds._FIRST_PAUSE_S
        assert dict(client.status.terminations) == {"Complete": 6}
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_refusal_behind_a_stream_that_lasted_is_no_reason_to_stay_away(
    authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "_LASTED_S", -1.0)

    async def scenario() -> None:
        control = Refusing(authority, tmp_path, grpc.StatusCode.UNAVAILABLE, "no")
        client = control.client(accept)
        client._pause_s = 64 * xds._FIRST_PAUSE_S
        running = await control.meet(client)
        control.respond(ADDRESS, "n", {})
        assert (await control.request()).response_nonce == "n"
        control.responses.put_nowait(None)
        await control.request()
        assert client._pause_s == 2 * xds._FIRST_PAUSE_S
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_who_is_refused_by_one_name_does_not_try_the_other(authority: Any, tmp_path: Path, eventually: Any) -> None:
    """A token that is not taken any more must not be told as a wrong certificate, nor a new one wait for twice the pauses."""

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        control.refusal = "no"
        await control.start()
        endpoint = Endpoint(f"127.0.0.1:{control.port}", authority.root_pem, "inline", "Kubernetes", "somebody.else")
        client = XdsClient(endpoint, NodeMetadata("ztunnel", "app", "fz", "10.77.0.2", "nz", "K"), [ADDRESS], accept)
        running = asyncio.ensure_future(client.run())
        try:
            await eventually(lambda: client.status.terminations["ConnectionError"] >= 4)
        finally:
            await control.end(running)
        assert client._unreached == 1, "by the name that is not in its certificate, once"

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("lasted", [True, False])
def test_after_a_clean_end_the_next_stream_begins_at_once_if_the_last_one_lasted(
    authority: Any,
    tmp_path: Path,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lasted: bool,
) -> None:
    """A server that ends streams as soon as it has answered them would be asked in a circle."""
    monkeypatch.setattr(xds, "_FIRST_PAUSE_S", 3000.0)
    monkeypatch.setattr(xds, "_LASTED_S", 0.0 if lasted else 3000.0)

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        client = control.client(accept)
        running = await control.meet(client)
        control.respond(ADDRESS, "n1", {})
        assert (await control.request()).response_nonce == "n1"
        control.responses.put_nowait(None)
        if lasted:
            await eventually(lambda: len(control.metadata) == 2)
            assert "next attempt" not in caplog.text
        else:
            await eventually(lambda: "the control plane ended the stream; next attempt within" in caplog.text)
            assert len(control.metadata) == 1
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("name", "attempts"), [("", 1), ("somebody.else", 2)])
def test_who_is_reached_by_no_name_is_waited_for(
    authority: Any,
    tmp_path: Path,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    attempts: int,
) -> None:
    monkeypatch.setattr(xds, "_FIRST_PAUSE_S", 3000.0)

    async def scenario() -> None:
        endpoint = Endpoint(f"127.0.0.1:{unused_port()}", authority.root_pem, "inline", "Kubernetes", name)
        client = XdsClient(endpoint, NodeMetadata("ztunnel", "app", "fz", "10.77.0.2", "nz", "K"), [ADDRESS], accept)
        running = asyncio.ensure_future(client.run())
        await eventually(lambda: "next attempt within" in caplog.text)
        assert client.status.terminations == {"ConnectionError": attempts}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_the_roots_that_this_machine_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Any) -> None:
    endpoint = Endpoint("127.0.0.1:1", None, None, "Kubernetes")
    (tmp_path / "roots.pem").write_bytes(authority.root_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    assert endpoint.root_pem() == authority.root_pem
    (tmp_path / "roots.pem").write_bytes(b"x" * (grpc_tls.MAX_ROOT_BYTES + 1))
    with pytest.raises(ValueError, match=r"more than 4 MiB: leave only roots"):
        endpoint.root_pem()
    (tmp_path / "roots.pem").unlink()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="install ca-certificates"):
        endpoint.root_pem()
    assert endpoint.metadata() == (("clusterid", "Kubernetes"),)


def test_demands_are_sent_answered_and_asked_again_after_a_break(authority: Any, tmp_path: Path, eventually: Any) -> None:
    answers: dict[str, str] = {}
    applied: list[str] = []

    async def on_update(update: Update) -> Mapping[str, str]:
        applied.extend(one.name for one in update.upserts)
        return {}

    def on_answers(several: Mapping[str, str]) -> None:
        assert "K//Pod/fz/far" in applied or "/10.0.0.1" not in several, "the state is up to date before waiters wake"
        answers.update(several)

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        client = control.client(on_update, None, (ADDRESS,), on_answers)
        running = asyncio.ensure_future(client.run())
        first, second = await control.request(), await control.request()
        assert (list(first.resource_names_subscribe), list(first.resource_names_unsubscribe)) == (["*"], ["*"])
        assert (second.type_url, list(second.resource_names_subscribe)) == (AUTHORIZATION, [])
        client.demand(ADDRESS, ["/10.0.0.1", "/8.8.8.8"])
        demand = await control.request()
        assert (demand.type_url, list(demand.resource_names_subscribe)) == (ADDRESS, ["/10.0.0.1", "/8.8.8.8"])
        assert not demand.response_nonce and not demand.node.id
        control.respond(ADDRESS, "n1", {"K//Pod/fz/far": "v1"}, ("/8.8.8.8",), ("/10.0.0.1",))
        await control.request()
        assert answers == {"/10.0.0.1": "", "/8.8.8.8": ""}

        client.demand(ADDRESS, ["/10.0.0.1", "fz/later"])
        await control.request()
        control.responses.put_nowait(None)
        again = await control.request()
        assert dict(again.initial_resource_versions) == {"K//Pod/fz/far": "v1", "fz/later": ""}
        assert (list(again.resource_names_subscribe), list(again.resource_names_unsubscribe)) == (["*"], ["*"])
        await control.request()
        control.respond(ADDRESS, "n1", {"fz/later": "v1"})
        await eventually(lambda: answers.get("fz/later") == "")
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_stream_that_carried_many_names_makes_room_for_another(
    authority: Any, tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta.client, "MAX_ASKED", 1)
    answers: dict[str, str] = {}

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        client = control.client(accept, None, (ADDRESS,), answers.update)
        running = await control.meet(client)
        client.demand(ADDRESS, ["fz/a", "fz/b", "fz/c"])
        await control.request()
        control.respond(ADDRESS, "n1", {"fz/a": "1"}, ("fz/b",))
        assert (await control.request()).response_nonce == "n1"
        await eventually(lambda: client.status.terminations["Complete"] == 1 and len(control.metadata) == 2)
        again = await control.request()
        assert dict(again.initial_resource_versions) == {"fz/a": "1", "fz/c": ""} and set(answers) == {"fz/a", "fz/b"}
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_more_than_may_be_held_is_refused_and_not_taken_in(
    authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta.messages, "MAX_RESOURCES", 2)
    updates: list[Update] = []

    async def on_update(update: Update) -> Mapping[str, str]:
        updates.append(update)
        return {}

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        client = control.client(on_update)
        running = await control.meet(client)
        control.respond(ADDRESS, "n1", {"a": "1", "b": "1", "c": "1"})
        answer = await control.request()
        assert answer.error_detail.message == "c: more than 2 resources of one type"
        assert [one.name for one in updates[0].upserts] == ["a", "b"] and updates[0].refused == ("c",)
        assert client.versions(ADDRESS) == {"a": "1", "b": "1"}
        assert client.status.messages == {ADDRESS: 1} and client.status.message_bytes == {ADDRESS: 3}, "values alone"
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_who_asks_for_too_much_at_once_is_told_so(authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta.client, "MAX_PENDING", 1)
    answers: dict[str, str] = {}

    async def scenario() -> None:
        client = Control(authority, tmp_path).client(accept, None, (ADDRESS,), answers.update)
        client.demand(ADDRESS, ["fz/a", "fz/b"])
        assert answers == {"fz/b": "1 names are being asked for already"}

    asyncio.run(scenario())


def test_that_caches_are_warm_before_unblocked(authority: Any, tmp_path: Path, eventually: Any) -> None:
    applied: list[str] = []
    may_go_on = asyncio.Event()

    async def on_update(update: Update) -> Mapping[str, str]:
        await may_go_on.wait()
        applied.append(update.type_url)
        return {}

    async def scenario() -> None:
        control = Control(authority, tmp_path)
        await control.start()
        client = control.client(on_update)
        running = asyncio.ensure_future(client.run())
        for type_url in (ADDRESS, AUTHORIZATION):
            control.respond(type_url, "n1", {"K//Pod/fz/app": "v1"})
        await eventually(lambda: client.status.messages[ADDRESS] == 1)
        assert not client.ready and not applied
        may_go_on.set()
        await eventually(lambda: client.ready)
        assert applied == [ADDRESS, AUTHORIZATION]
        await control.end(running)

    asyncio.run(asyncio.wait_for(scenario(), 60))
