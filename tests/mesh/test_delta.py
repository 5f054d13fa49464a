"""Both ends of delta xDS, each against recorded behaviour, and then against each other."""

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.delta import DeltaClient, DeltaServer, Request, Resource, Response, Snapshot, messages, version_of
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, decode_address, decode_all

pytestmark = pytest.mark.unit

BOTH = (ADDRESS_TYPE, AUTHORIZATION_TYPE)


def resource(name: str, version: str = "1", *aliases: str) -> Resource:
    return Resource(name, version, f"{name}@{version}".encode(), aliases)


def snapshot(*resources: Resource) -> Snapshot:
    return Snapshot({one.name: one for one in resources})


def answered(*resources: Resource, removed: tuple[str, ...] = (), nonce: str = "n") -> Response:
    return Response(ADDRESS_TYPE, resources, removed, nonce)


# --- the client


def test_the_first_request_asks_for_everything_address_first() -> None:
    assert DeltaClient(BOTH).open() == [Request(ADDRESS_TYPE, initial=True), Request(AUTHORIZATION_TYPE, initial=True)]


def test_who_went_back_before_the_next_stream_tells_anew_what_broke_off() -> None:
    """A half of it may be held: a policy that it had replaced already, or one that it had not put in its place yet."""
    before = snapshot(resource("kept"), resource("changed"), resource("gone"))
    client, said = DeltaClient((ADDRESS_TYPE,)), []
    for version, state in enumerate((before, snapshot(resource("kept"), resource("changed", "2"), resource("new")), before)):
        server = DeltaServer((ADDRESS_TYPE,))
        server.receive(client.open()[0])
        response = server.push(ADDRESS_TYPE, state, str(version))
        assert response is not None
        said.append(({one.name: one.version for one in response.resources}, response.removed))
        if version == 1:
            client.doubt(response)
        else:
            client.answer(response)
    assert said[1] == ({"changed": "2", "new": "1"}, ("gone",))
    assert said[2] == ({"changed": "1", "gone": "1"}, ("new",))
    assert client.versions(ADDRESS_TYPE) == before.versions


def test_an_answer_that_nobody_asked_for_is_no_doubt() -> None:
    client = DeltaClient((AUTHORIZATION_TYPE,))
    client.doubt(answered(resource("a")))
    assert client.open() == DeltaClient((AUTHORIZATION_TYPE,)).open()


def as_wire(request: Request) -> bytes:
    message = discovery_pb2.DeltaDiscoveryRequest(type_url=request.type_url, response_nonce=request.nonce)
    if request.error is not None:
        message.error_detail.message = request.error
    return bytes(message.SerializeToString())


def test_golden_ack() -> None:
    ack = DeltaClient(BOTH).answer(answered(resource("a"), nonce="n1"))
    golden = "122a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e4164647265737332026e31"
    assert as_wire(ack).hex() == golden
    assert ack.error is None


def test_golden_nack() -> None:
    """Three of four resources are bad: one line of reasons, and the good one is in force and retained."""
    bad = {"b1": b"\x0a\x05\x1a\x03123", "b2": b"\x0a\x02\x28\x02", "b3": b"\x0a\x0c\xb2\x01\x09\x0a\x07noslash"}
    sent = [Resource(f"K//Pod/fz/{name}", "v1", value) for name, value in bad.items()]
    sent.append(Resource("K//Pod/fz/g", "v1", b"\x0a\x00"))
    decoded, refused = decode_all(sent, lambda one: decode_address(one.value))
    client = DeltaClient(BOTH)
    nack = client.answer(Response(ADDRESS_TYPE, tuple(sent), (), "n5"), refused)
    golden = (
        "122a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e4164647265737332026e353abd0112ba014b2f2f506f64"
        "2f667a2f62313a206661696c656420746f20706172736520616464726573732c2068616420332062797465733b204b2f2f506f642f667a2f62323a20"
        "756e6b6e6f776e20656e756d3a20756e737570706f727465642074756e6e656c2070726f746f636f6c3a206c656761637920697374696f206d746c73"
        "3b204b2f2f506f642f667a2f62333a206661696c656420746f207061727365206e616d6573706163656420686f73746e616d653a206e6f736c617368"
    )
    assert as_wire(nack).hex() == golden
    assert len(decoded) == 1
    assert client.versions(ADDRESS_TYPE) == {"K//Pod/fz/g": "v1"}


def test_reconnect_echoes_retained_versions() -> None:
    client = DeltaClient(BOTH)
    client.open()
    response = answered(resource("app", "v1"), resource("g", "v1"), resource("bad", "v1"))
    client.answer(response, {"bad": "no"})
    address, authorization = client.open()
    assert address == Request(ADDRESS_TYPE, initial_versions={"app": "v1", "g": "v1"}, initial=True)
    assert authorization.initial_versions == {}


def test_a_refused_update_keeps_the_earlier_version_retained() -> None:
    client = DeltaClient(BOTH)
    client.answer(answered(resource("a", "v1")))
    client.answer(answered(resource("a", "v2")), {"a": "no"})
    assert client.versions(ADDRESS_TYPE) == {"a": "v1"}
    client.answer(answered(removed=("a", "unknown")))
    assert client.versions(ADDRESS_TYPE) == {}


def test_empty_versions_are_retained_too() -> None:
    client = DeltaClient(BOTH)
    client.answer(Response(AUTHORIZATION_TYPE, (resource("ns/p", ""),), (), "n"))
    assert client.open()[1].initial_versions == {"ns/p": ""}


def test_ready_when_every_type_was_answered() -> None:
    client = DeltaClient(BOTH, retained={ADDRESS_TYPE: [resource("a")]})
    assert not client.ready
    client.answer(Response(ADDRESS_TYPE, nonce="1"))
    assert not client.ready
    client.answer(Response(AUTHORIZATION_TYPE, (resource("p"),), (), "2"), {"p": "no"})
    assert client.ready
    assert client.versions(ADDRESS_TYPE) == {"a": "1"}


def test_a_type_nobody_asked_for_is_acknowledged_and_forgotten() -> None:
    client = DeltaClient(BOTH)
    assert client.answer(Response("type.googleapis.com/other", (resource("x"),), (), "n")) == Request(
        "type.googleapis.com/other", nonce="n"
    )
    assert client.versions("type.googleapis.com/other") == {}


def test_a_client_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_RESOURCES", 2)
    client = DeltaClient(BOTH)
    client.answer(answered(resource("a"), resource("b")))
    flood = answered(resource("a", "2"), resource("c"), resource("d"), removed=("b",))
    assert client.excess(flood) == {"d": "more than 2 resources of one type"}
    nack = client.answer(flood, client.excess(flood))
    assert nack.error == "d: more than 2 resources of one type"
    assert client.versions(ADDRESS_TYPE) == {"a": "2", "c": "1"}
    long = client.answer(answered(resource("e")), {"e": "x" * 100_000})
    assert len(long.error or "") == messages.MAX_REASON


def test_of_what_broke_off_no_more_is_in_doubt_than_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_RESOURCES", 2)
    client = DeltaClient((ADDRESS_TYPE,))
    client.answer(answered(resource("a")))
    for names in ("abc", "xyz"):
        client.doubt(answered(*map(resource, names)))
    assert client.versions(ADDRESS_TYPE).keys() == {"a", "b"}


# --- the server


def subscribed(*subscribe: str, initial: dict[str, str] | None = None) -> DeltaServer:
    server = DeltaServer(BOTH)
    server.receive(Request(ADDRESS_TYPE, subscribe=subscribe, initial_versions=initial or {}))
    return server


def names(response: Response | None) -> tuple[list[str], list[str]]:
    assert response is not None
    return [one.name for one in response.resources], list(response.removed)


def test_everything_at_first_then_only_changes() -> None:
    server = subscribed()
    assert names(server.push(ADDRESS_TYPE, snapshot(resource("a"), resource("b")), "1")) == (["a", "b"], [])
    server.receive(Request(ADDRESS_TYPE, nonce="1"))
    assert server.settled(ADDRESS_TYPE)
    assert server.push(ADDRESS_TYPE, snapshot(resource("a"), resource("b")), "2") is None
    assert names(server.push(ADDRESS_TYPE, snapshot(resource("b", "2"), resource("c")), "3")) == (["b", "c"], ["a"])
    assert not server.settled(ADDRESS_TYPE)


def test_an_empty_mesh_is_an_answer_too() -> None:
    assert names(subscribed().push(ADDRESS_TYPE, snapshot(), "1")) == ([], [])


def test_a_type_that_was_not_asked_for_gets_nothing() -> None:
    assert subscribed().push(AUTHORIZATION_TYPE, snapshot(resource("p")), "1") is None


def test_reconnect_sends_the_difference() -> None:
    server = subscribed(initial={"kept": "1", "old": "1", "gone": "1"})
    current = snapshot(resource("kept"), resource("old", "2"), resource("new"))
    assert names(server.push(ADDRESS_TYPE, current, "1")) == (["new", "old"], ["gone"])


def test_one_answer_outstanding_and_the_rest_in_one_piece() -> None:
    server = subscribed()
    server.push(ADDRESS_TYPE, snapshot(resource("a")), "1")
    assert server.push(ADDRESS_TYPE, snapshot(resource("a", "2")), "2") is None
    server.receive(Request(ADDRESS_TYPE, nonce="stale"))
    assert server.push(ADDRESS_TYPE, snapshot(resource("a", "3")), "2") is None
    server.receive(Request(ADDRESS_TYPE, nonce="1"))
    response = server.push(ADDRESS_TYPE, snapshot(resource("a", "3"), resource("b")), "2")
    assert names(response) == (["a", "b"], [])


def test_a_refusal_is_remembered_and_not_answered_until_something_changes() -> None:
    server = subscribed()
    server.push(ADDRESS_TYPE, snapshot(resource("a")), "1")
    server.receive(Request(ADDRESS_TYPE, nonce="1", error="a: no"))
    assert server.refusal(ADDRESS_TYPE) == "a: no"
    assert not server.settled(ADDRESS_TYPE)
    assert server.push(ADDRESS_TYPE, snapshot(resource("a")), "2") is None
    assert names(server.push(ADDRESS_TYPE, snapshot(resource("a", "2")), "2")) == (["a"], [])
    server.receive(Request(ADDRESS_TYPE, nonce="2"))
    assert server.refusal(ADDRESS_TYPE) == ""
    assert server.settled(ADDRESS_TYPE)


def test_a_star_among_the_names_is_everything() -> None:
    assert names(subscribed("*").push(ADDRESS_TYPE, snapshot(resource("a")), "1")) == (["a"], [])


def test_named_resources_by_name_and_alias() -> None:
    current = snapshot(resource("K//Pod/ns/a", "1", "/10.0.0.1"), resource("b"), resource("c"))
    server = subscribed("/10.0.0.1", "b", "nothing")
    assert names(server.push(ADDRESS_TYPE, current, "1")) == (["K//Pod/ns/a", "b"], ["/10.0.0.1", "nothing"])
    server.receive(Request(ADDRESS_TYPE, nonce="1"))
    assert server.push(ADDRESS_TYPE, current, "2") is None
    server.receive(Request(ADDRESS_TYPE, subscribe=("b", "c"), unsubscribe=("/10.0.0.1",)))
    assert names(server.push(ADDRESS_TYPE, current, "2")) == (["b", "c"], ["K//Pod/ns/a"])


def test_thousands_of_names_are_taken_back_at_once() -> None:
    """One walk over what the client has, not one a name: control serves everybody else in the same loop."""

    class Held(dict[str, str]):
        walks = 0

        def items(self):  # type: ignore[no-untyped-def]
            Held.walks += 1
            return super().items()

    server = subscribed("a", "b", "c")
    current = snapshot(resource("a"), resource("b"), resource("c"))
    server.push(ADDRESS_TYPE, current, "1")
    subscription = server._subscriptions[ADDRESS_TYPE]
    subscription.sent = Held(subscription.sent)
    server.receive(Request(ADDRESS_TYPE, unsubscribe=("a", "b", *map(str, range(5000))), nonce="1"))
    assert Held.walks == 1
    assert server.push(ADDRESS_TYPE, current, "2") is None, "nor is it told that what it took back is gone"
    server.receive(Request(ADDRESS_TYPE, subscribe=("a",)))
    assert names(server.push(ADDRESS_TYPE, current, "2")) == (["a"], [])


def test_a_name_asked_for_on_a_wildcard_stream_is_answered_at_once() -> None:
    server = subscribed()
    server.push(ADDRESS_TYPE, snapshot(resource("a")), "1")
    server.receive(Request(ADDRESS_TYPE, subscribe=("a", "/9.9.9.9"), nonce="1"))
    assert names(server.push(ADDRESS_TYPE, snapshot(resource("a")), "2")) == (["a"], ["/9.9.9.9"])


def test_subscribed_to_everything_and_at_once_to_nothing() -> None:
    server = DeltaServer(BOTH)
    server.receive(Request(ADDRESS_TYPE, subscribe=("*",), unsubscribe=("*",)))
    assert names(server.push(ADDRESS_TYPE, snapshot(resource("a")), "1")) == ([], [])


def test_unserved_types_and_floods_of_names_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not served here"):
        DeltaServer(BOTH).receive(Request("type.googleapis.com/other"))
    monkeypatch.setattr(messages, "MAX_RESOURCES", 2)
    monkeypatch.setattr(messages, "MAX_NAMES", 2)
    with pytest.raises(ValueError, match="more than 2 names"):
        subscribed("a", "b", "c")
    with pytest.raises(ValueError, match="more than 2 initial"):
        subscribed(initial={"a": "", "b": "", "c": ""})
    server = subscribed("a")
    with pytest.raises(ValueError, match="more than 2 names"):
        server.receive(Request(ADDRESS_TYPE, subscribe=("b", "c")))


def test_versions_follow_values() -> None:
    assert version_of(b"a") == version_of(b"a") != version_of(b"b")
    assert len(version_of(b"")) == 16


# --- both ends


states = st.dictionaries(st.sampled_from("abcde"), st.sampled_from("123"), max_size=5)


@given(st.lists(st.tuples(states, st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_the_client_ends_up_with_what_the_server_has(history: list[tuple[dict[str, str], bool, bool]]) -> None:
    """Whatever happens in between: pushes while an answer is outstanding, streams that break before or after the ACK."""
    client, server = DeltaClient(BOTH), DeltaServer(BOTH)
    held: dict[str, bytes] = {}
    pending: Request | None = None
    for number, (state, breaks, delays) in enumerate([*history, (history[-1][0], True, False), (history[-1][0], False, False)]):
        if breaks:
            server, pending = DeltaServer(BOTH), None
        if server.type_urls == []:
            for request in client.open():
                server.receive(request)
        if pending is not None:
            server.receive(pending)
            pending = None
        current = snapshot(*(resource(name, version) for name, version in state.items()))
        response = server.push(ADDRESS_TYPE, current, str(number))
        if response is None:
            continue
        for name in response.removed:
            held.pop(name, None)
        held |= {one.name: one.value for one in response.resources}
        pending = client.answer(response)
        if not delays:
            server.receive(pending)
            pending = None
    assert held == {name: f"{name}@{version}".encode() for name, version in history[-1][0].items()}
    assert client.versions(ADDRESS_TYPE) == history[-1][0]
