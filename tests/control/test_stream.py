import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def said(stream: Stream, current: State) -> list[Response]:
    """The same, unanswered."""
    return list(iter(lambda: stream.next_response(current), None))


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


def test_workloads_wait_while_a_client_cannot_be_told_of_the_policies_that_they_list() -> None:
    stream = opened()
    told(stream, state({"pod": "lists a"}, {"a": "1"}))
    [changed] = said(stream, state({"pod": "lists a"}, {"a": "2"}))
    assert changed.type_url == AUTHORIZATION_TYPE
    third = state({"pod": "lists b"}, {"b": "1"})
    assert said(stream, third) == [], "it would list a policy that is not there: nothing would be forbidden"
    stream.receive(Request(AUTHORIZATION_TYPE, nonce=changed.nonce))
    assert told(stream, third) == [("Auth", ["b"], []), ("Addr", ["pod"], []), ("Auth", [], ["a"])]


def test_what_the_workloads_list_that_a_client_was_told_of_last_is_not_broken_before_the_next() -> None:
    stream = opened()
    told(stream, state({"pod": "lists a"}, {"a": "1"}))
    for response in said(stream, state({"pod": "lists b"}, {"b": "1"})):
        stream.receive(Request(response.type_url, nonce=response.nonce))
    third = state({"pod": "lists c"}, {"c": "1"})
    assert told(stream, third) == [("Auth", ["c"], ["a"]), ("Addr", ["pod"], []), ("Auth", [], ["b"])]


@given(st.data())
@settings(max_examples=200)
def test_a_client_never_has_a_workload_without_the_policies_that_it_lists(data: st.DataObject) -> None:
    stream = opened()
    lists = st.sampled_from("abcd")
    policies: dict[str, str] = {}
    pods: dict[str, str] = {}
    unanswered: list[Response] = []
    listed = data.draw(lists)
    for _ in range(data.draw(st.integers(1, 25))):
        step = data.draw(st.sampled_from(["change", "say", "answer"]))
        if step == "change":
            listed = data.draw(lists)
        elif step == "answer" and unanswered:
            response = unanswered.pop(data.draw(st.integers(0, len(unanswered) - 1)))
            stream.receive(Request(response.type_url, nonce=response.nonce))
        current = state({"pod": listed}, {listed: "1"})
        if step == "say" and (response := stream.next_response(current)) is not None:
            unanswered.append(response)
            known = policies if response.type_url == AUTHORIZATION_TYPE else pods
            known |= {one.name: one.version for one in response.resources}
            for name in response.removed:
                known.pop(name, None)
        assert set(pods.values()) <= policies.keys()
    for response in unanswered:
        stream.receive(Request(response.type_url, nonce=response.nonce))
    current = state({"pod": listed}, {listed: "1"})
    told(stream, current)
    assert stream.is_in_step(current)


def test_what_a_client_was_told_is_not_compared_again() -> None:
    stream = opened()
    current = state({"pod": "1"}, {"a": "1"})
    assert len(told(stream, current)) == 2
    assert told(stream, current) == []
    assert told(stream, state({"pod": "1"}, {"a": "1"})) == [], "equal states are the same"
    stream.receive(Request(ADDRESS_TYPE, subscribe=("pod", "other")))
    assert told(stream, current) == [("Addr", ["pod"], ["other"])], "who asks gets an answer"


def test_who_comes_back_hears_of_no_workload_before_it_has_asked_for_policies() -> None:
    stream = Stream("n1")
    stream.receive(Request(ADDRESS_TYPE, initial_versions={"pod": "lists a"}))
    current = state({"pod": "lists b"}, {"b": "1"})
    assert told(stream, current) == []
    stream.receive(Request(AUTHORIZATION_TYPE, initial_versions={"a": "1"}))
    assert told(stream, current) == [("Auth", ["b"], []), ("Addr", ["pod"], []), ("Auth", [], ["a"])]
    stream = Stream("n1", alone=True)
    stream.receive(Request(ADDRESS_TYPE))
    assert told(stream, current) == [("Addr", ["pod"], [])]


def test_a_policy_that_changed_and_went_while_it_may_be_listed_is_kept_as_it_was_told_last() -> None:
    """And never as what a client came back with: of that only the version is known."""
    stream = Stream("n1")
    stream.receive(Request(AUTHORIZATION_TYPE, initial_versions={"a": "1"}))
    assert told(stream, state({"pod": "lists a"}, {"a": "2"})) == [("Auth", ["a"], [])]
    gone = state({"pod": "lists none"}, {})
    assert told(stream, gone) == []
    stream.receive(Request(ADDRESS_TYPE, initial_versions={"pod": "lists a"}))
    assert told(stream, gone) == [("Addr", ["pod"], []), ("Auth", [], ["a"])]


def test_one_type_alone() -> None:
    stream = Stream("n1")
    stream.receive(Request(AUTHORIZATION_TYPE))
    assert told(stream, state({"pod": "1"}, {"a": "1"})) == [("Auth", ["a"], [])]
    assert told(stream, state({"pod": "1"}, {})) == [("Auth", [], ["a"])]
    stream = Stream("n1")
    stream.receive(Request(AUTHORIZATION_TYPE, initial_versions={"a": "1"}))
    assert told(stream, state({}, {})) == [("Auth", [], [])], "it may have workloads that list it, and ask for their like yet"
    stream.alone = True
    assert told(stream, state({}, {})) == [("Auth", [], ["a"])]
    with pytest.raises(ValueError, match="is not served"):
        stream.receive(Request("x/y.Z"))
