import pytest

from control.stream import Stream
from mesh.delta import Request, Resource, Response, Snapshot
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE

pytestmark = pytest.mark.unit

State = dict[str, Snapshot]


def state(addresses: dict[str, str], policies: dict[str, str]) -> State:
    """Names and versions of both types."""
    return {
        url: Snapshot({name: Resource(name, version, version.encode()) for name, version in one.items()})
        for url, one in ((ADDRESS_TYPE, addresses), (AUTHORIZATION_TYPE, policies))
    }


def opened(**retained: dict[str, str]) -> Stream:
    stream = Stream("n1")
    stream.receive(Request(ADDRESS_TYPE, initial_versions=retained.get("addresses", {})))
    stream.receive(Request(AUTHORIZATION_TYPE, initial_versions=retained.get("policies", {})))
    return stream


def told(stream: Stream, current: State, acknowledge: bool = True) -> list[tuple[str, list[str], list[str]]]:
    """Everything that is said of a state: (first letters of the type, names, removed names)."""
    said = []
    while (response := stream.next_response(current)) is not None:
        names = [resource.name for resource in response.resources]
        said.append((response.type_url.rpartition(".")[2][:4], names, list(response.removed)))
        if acknowledge:
            stream.receive(Request(response.type_url, nonce=response.nonce))
    return said


def test_policies_are_made_before_they_are_broken() -> None:
    stream = opened()
    assert told(stream, state({"pod": "lists a"}, {"a": "1", "c": "1"})) == [
        ("Auth", ["a", "c"], []),
        ("Addr", ["pod"], []),
    ]
    assert told(stream, state({"pod": "lists b"}, {"b": "1", "c": "2"})) == [
        ("Auth", ["b", "c"], []),
        ("Addr", ["pod"], []),
        ("Auth", [], ["a"]),
    ]
    assert told(stream, state({"pod": "lists b"}, {"c": "2"})) == [("Auth", [], ["b"])]


def test_policies_that_a_client_brings_along_are_broken_as_late() -> None:
    stream = opened(addresses={"pod": "lists a"}, policies={"a": "1", "c": "1"})
    assert told(stream, state({"pod": "lists b"}, {"b": "1", "c": "1"})) == [
        ("Auth", ["b"], []),
        ("Addr", ["pod"], []),
        ("Auth", [], ["a"]),
    ]


def test_nothing_is_broken_while_an_older_push_of_workloads_is_unanswered() -> None:
    stream = opened()
    first = state({"pod": "lists a"}, {"a": "1"})
    responses: list[Response] = []
    while (response := stream.next_response(first)) is not None:
        responses.append(response)
    assert len(responses) == 2
    second = state({"pod": "lists b"}, {"b": "1"})
    assert told(stream, second) == [], "one answer per type outstanding"
    stream.receive(Request(AUTHORIZATION_TYPE, nonce=responses[0].nonce))
    assert told(stream, second) == [("Auth", ["b"], [])]
    stream.receive(Request(ADDRESS_TYPE, nonce="stale"))
    assert told(stream, second) == []
    # Refused is answered too: what a client does not take must not keep others from being told.
    stream.receive(Request(ADDRESS_TYPE, nonce=responses[1].nonce, error="pod: no"))
    assert told(stream, second) == [("Addr", ["pod"], []), ("Auth", [], ["a"])]
    assert stream.last_nack == "istio.workload.Address: pod: no" and stream.is_in_step(second)
    assert not stream.is_in_step(first) and not Stream("n1").is_in_step(second)


def test_what_a_client_was_told_is_not_compared_again() -> None:
    stream = opened()
    current = state({"pod": "1"}, {"a": "1"})
    assert len(told(stream, current)) == 2
    assert told(stream, current) == []
    assert told(stream, state({"pod": "1"}, {"a": "1"})) == [], "equal states are the same"
    stream.receive(Request(ADDRESS_TYPE, subscribe=("pod", "other")))
    assert told(stream, current) == [("Addr", ["pod"], ["other"])], "who asks gets an answer"


def test_one_type_alone() -> None:
    stream = Stream("n1")
    stream.receive(Request(AUTHORIZATION_TYPE))
    assert told(stream, state({"pod": "1"}, {"a": "1"})) == [("Auth", ["a"], [])]
    assert told(stream, state({"pod": "1"}, {})) == [("Auth", [], ["a"])]
    with pytest.raises(ValueError, match="is not served"):
        stream.receive(Request("x/y.Z"))
