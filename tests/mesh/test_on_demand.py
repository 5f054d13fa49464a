"""Delta xDS by name: a client that asks for what it meets, a server that answers whatever it is called, and both together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.delta import DeltaClient, DeltaServer, Request, Resource, Response, Snapshot, client, messages
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE

pytestmark = pytest.mark.unit

BOTH = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
NODE = "@n1"


def resource(name: str, *aliases: str, groups: tuple[str, ...] = (), version: str = "1") -> Resource:
    return Resource(name, version, f"{name}@{version}".encode(), aliases, groups)


# The mesh of the recording: a node's own pods, and pods and services elsewhere.
HOME = resource("Kubernetes//Pod/amb/one", "/10.244.1.5", groups=(NODE,))
FAR = resource("Kubernetes//Pod/amb/web-97958b57f-6w6xr", "/10.244.0.8", groups=("@n2", "amb/web.amb.svc.cluster.local"))
FAR_TOO = resource("Kubernetes//Pod/amb/web-97958b57f-gsv6n", "/10.244.0.9", groups=("@n2", "amb/web.amb.svc.cluster.local"))
WEB = resource("amb/web.amb.svc.cluster.local", "/10.96.85.166")
S2 = resource("amb2/s2.amb2.svc.cluster.local", "/10.96.176.84")
S2_POD = resource("Kubernetes//Pod/amb2/s2", "/10.244.0.20", groups=("@n2", "amb2/s2.amb2.svc.cluster.local"))
RANGE = resource("amb/range.example.com", "/10.99.0.0/16")
NARROW = resource("amb/narrow.example.com", "/10.99.7.0/24", "net2/10.98.0.0/16", "/2001:db8::/32")
MESH = Snapshot({one.name: one for one in (HOME, FAR, FAR_TOO, WEB, S2, S2_POD, RANGE, NARROW)})


class Stream:
    """A stream to a server with one state, whose answers are acknowledged at once."""

    def __init__(self, state: Snapshot = MESH, initial: dict[str, str] | None = None) -> None:
        self.server = DeltaServer(BOTH, home=NODE)
        self.state = state
        self.number = 0
        self.server.receive(Request(ADDRESS_TYPE, ("*",), ("*",), initial or {}))

    def push(self) -> Response | None:
        self.number += 1
        response = self.server.push(ADDRESS_TYPE, self.state, str(self.number))
        if response is not None:
            self.server.receive(Request(ADDRESS_TYPE, nonce=response.nonce))
        return response

    def told(self) -> tuple[dict[str, tuple[str, ...]], list[str]] | None:
        """Names with aliases, and removed names; None: nothing was said."""
        response = self.push()
        return ({one.name: one.aliases for one in response.resources}, list(response.removed)) if response else None

    def ask(self, *names: str) -> tuple[dict[str, tuple[str, ...]], list[str]] | None:
        self.server.receive(Request(ADDRESS_TYPE, names))
        return self.told()


def test_golden_answers_on_demand() -> None:
    """Istio's recorded answers; ours differ where an address was asked for: it is among the removed too, so that Istio's
    ztunnel wakes; a question asked again is answered again; an address inside a range is known."""
    stream = Stream()
    assert stream.told() == ({HOME.name: ("/10.244.1.5",)}, [])
    assert stream.told() is None
    assert stream.ask("/10.244.0.8") == ({FAR.name: ("/10.244.0.8",)}, ["/10.244.0.8"])
    assert stream.ask("/10.244.0.8") == ({FAR.name: ("/10.244.0.8",)}, ["/10.244.0.8"])
    assert stream.ask("/10.244.0.8", "/8.8.8.8") == ({FAR.name: ("/10.244.0.8",)}, ["/10.244.0.8", "/8.8.8.8"])
    assert stream.ask(HOME.name) == ({HOME.name: ("/10.244.1.5",)}, [])
    assert stream.ask(WEB.name) == ({WEB.name: ("/10.96.85.166",), FAR_TOO.name: ("/10.244.0.9",)}, []), "and its pods"
    assert stream.ask("/10.96.176.84") == ({S2.name: S2.aliases, S2_POD.name: S2_POD.aliases}, ["/10.96.176.84"])
    assert stream.ask("/10.99.1.2") == ({RANGE.name: ("/10.99.0.0/16", "/10.99.1.2")}, ["/10.99.1.2"])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/10.99.7.1", (NARROW.name, RANGE.name)),
        ("/10.99.8.1", (RANGE.name,)),
        ("net2/10.98.255.255", (NARROW.name,)),
        ("/10.98.0.1", ()),
        ("/2001:db8:1::1", (NARROW.name,)),
        ("/10.100.0.0", ()),
        ("10.99.7.1", ()),
        ("/10.99.7", ()),
        ("", ()),
    ],
)
def test_an_address_inside_ranges_means_all_of_them_the_narrowest_first(name: str, found: tuple[str, ...]) -> None:
    assert MESH.find(name) == found


def test_who_asks_for_an_address_is_told_of_all_that_claim_it() -> None:
    """Which of them a client means depends on its namespace, on what is healthy, and on who is a pod: it decides itself."""
    theirs, ours = resource("a/x.example.com", "/10.9.9.9"), resource("b/x.example.com", "/10.9.9.9", "/10.8.0.0/16")
    pod = resource("Kubernetes//Pod/b/x", "/10.8.1.1")
    stream = Stream(Snapshot({one.name: one for one in (theirs, ours, pod)}))
    stream.told()
    told = stream.ask("/10.9.9.9")
    assert told is not None and told[0].keys() == {theirs.name, ours.name} and told[1] == ["/10.9.9.9"]
    told = stream.ask("/10.8.1.1")
    assert told is not None and told[0].keys() == {pod.name, ours.name} and "/10.8.1.1" in told[0][ours.name]
    third = resource("c/x.example.com", "/10.9.9.9")
    stream.state = Snapshot({**stream.state.resources, third.name: third})
    assert stream.told() == ({third.name: third.aliases}, []), "and of who comes later"


@given(st.text(max_size=40))
def test_whatever_is_asked_for_is_looked_up(name: str) -> None:
    assert set(MESH.find(name)) <= MESH.resources.keys()


def test_what_was_asked_for_is_kept_up_to_date() -> None:
    stream = Stream()
    stream.told()
    assert stream.ask("/10.244.0.77", WEB.name) is not None
    late = resource("Kubernetes//Pod/amb/late", "/10.244.0.77", groups=("@n2",))
    third = resource("Kubernetes//Pod/amb/web-3", "/10.244.0.78", groups=("@n2", WEB.name))
    stream.state = Snapshot({**MESH.resources, late.name: late, third.name: third})
    assert stream.told() == ({late.name: late.aliases, third.name: third.aliases}, [])
    stream.state = Snapshot({name: one for name, one in stream.state.resources.items() if one is not FAR})
    assert stream.told() == ({}, [FAR.name])


def test_a_client_that_comes_back_gets_the_difference_and_its_answers() -> None:
    stream = Stream(initial={HOME.name: "1", FAR.name: "0", "gone": "1", "/10.96.176.84": "", "/8.8.8.8": ""})
    assert stream.told() == (
        {FAR.name: FAR.aliases, S2.name: S2.aliases, S2_POD.name: S2_POD.aliases},
        ["/10.96.176.84", "/8.8.8.8", "gone"],
    )


def test_a_client_of_everything_sees_no_alias_on_the_wire() -> None:
    server = DeltaServer(BOTH, home=NODE)
    server.receive(Request(ADDRESS_TYPE))
    response = server.push(ADDRESS_TYPE, MESH, "1")
    assert response is not None and not response.by_name and len(response.resources) == len(MESH.resources)


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_NAMES", 2)
    with pytest.raises(ValueError, match="a name of more than 2048 characters"):
        DeltaServer([ADDRESS_TYPE]).receive(Request(ADDRESS_TYPE, ("x" * 2049,)))
    stream = Stream(initial={f"kept-{number}": "1" for number in range(9)})
    stream.ask("a", "b")
    with pytest.raises(ValueError, match="more than 2 names subscribed"):
        stream.ask("c")


# --- the client


def demanding(*retained: Resource) -> DeltaClient:
    return DeltaClient(BOTH, {ADDRESS_TYPE: retained}, on_demand=(ADDRESS_TYPE,))


def answered(*resources: Resource, removed: tuple[str, ...] = ()) -> Response:
    return Response(ADDRESS_TYPE, resources, removed, "n")


def test_on_demand_handling() -> None:
    one = demanding()
    assert one.open() == [Request(ADDRESS_TYPE, ("*",), ("*",), initial=True), Request(AUTHORIZATION_TYPE, initial=True)]
    assert one.next_demand() is None
    assert one.demand(ADDRESS_TYPE, "/10.0.0.1") and one.demand(ADDRESS_TYPE, "ns/b") and one.demand(ADDRESS_TYPE, "/10.0.0.1")
    assert one.next_demand() == Request(ADDRESS_TYPE, ("/10.0.0.1", "ns/b")), "without a nonce, and each once"
    assert one.next_demand() is None


def test_on_demand_cache_coherency() -> None:
    """An answer strikes off the demand of that name, alias or removed name; what is held is not asked for until it goes."""
    one = demanding()
    one.open()
    for name in ("/10.0.0.1", "ns/b", "/8.8.8.8", "bad", "later"):
        assert one.demand(ADDRESS_TYPE, name)
    one.next_demand()
    response = answered(resource("pod", "/10.0.0.1"), resource("ns/b"), resource("bad"), removed=("/8.8.8.8", "/10.0.0.1"))
    refused = {"bad": "no"}
    one.answer(response, refused)
    assert one.satisfied(response, refused) == {"/10.0.0.1": "", "ns/b": "", "/8.8.8.8": "", "bad": "no"}
    assert one.satisfied(response, refused) == {}
    assert not one.demand(ADDRESS_TYPE, "/10.0.0.1")
    assert one.demand(ADDRESS_TYPE, "/8.8.8.8") and one.demand(ADDRESS_TYPE, "bad")
    one.answer(answered(resource("pod", "/10.0.0.2")))
    assert one.demand(ADDRESS_TYPE, "/10.0.0.1"), "its address changed"
    one.answer(answered(removed=("pod",)))
    assert one.demand(ADDRESS_TYPE, "/10.0.0.2")


def test_add_abort_remove() -> None:
    """A stream that breaks before the answer: the next one asks again, with an empty version; what is held has its own."""
    one = demanding(resource("held", "/10.0.0.9"))
    assert not one.demand(ADDRESS_TYPE, "/10.0.0.9"), "an earlier run knew it"
    one.open()
    one.demand(ADDRESS_TYPE, "/10.0.0.1")
    one.next_demand()
    one.demand(ADDRESS_TYPE, "/10.0.0.2")
    again = one.open()[0]
    assert dict(again.initial_versions) == {"held": "1", "/10.0.0.1": "", "/10.0.0.2": ""}
    assert (again.subscribe, again.unsubscribe) == (("*",), ("*",)) and one.next_demand() is None
    one.satisfied(answered(removed=("/10.0.0.1", "/10.0.0.2")), {})
    assert dict(one.open()[0].initial_versions) == {"held": "1"}


def test_a_new_stream_carries_names_that_are_held_when_they_are_met_again() -> None:
    """What is held serves at once, the control plane away or not; but a stream tells only of what it was asked for."""
    one = demanding(resource("range", "/10.9.0.0/16", "/10.9.1.1"))
    one.open()
    assert not one.demand(ADDRESS_TYPE, "/10.9.1.1")
    one.open()
    assert one.next_demand() == Request(ADDRESS_TYPE, ("/10.9.1.1",)) and one.next_demand() is None
    assert not one.demand(ADDRESS_TYPE, "/10.9.1.1") and one.next_demand() is None, "once a stream"
    one.open()
    assert not one.demand(ADDRESS_TYPE, "/10.9.1.1")
    assert one.next_demand() == Request(ADDRESS_TYPE, ("/10.9.1.1",)) and one.next_demand() is None


def test_who_else_has_an_address_is_waited_for_once_a_stream() -> None:
    """An entry was told of with its service, and is called by its address; a pod that has it too was not asked for."""
    entry = resource("Kubernetes/networking.istio.io/ServiceEntry/amb/web/10.244.0.8", "/10.244.0.8")
    one = demanding(entry)
    one.open()
    assert one.demand(ADDRESS_TYPE, "/10.244.0.8", whole=True)
    assert one.next_demand() == Request(ADDRESS_TYPE, ("/10.244.0.8",))
    response = answered(entry, FAR)
    one.answer(response)
    assert one.satisfied(response, {}) == {"/10.244.0.8": ""}
    assert not one.demand(ADDRESS_TYPE, "/10.244.0.8", whole=True) and one.next_demand() is None
    one.open()
    assert one.demand(ADDRESS_TYPE, "/10.244.0.8", whole=True)


def test_a_name_that_a_stream_has_carried_is_taken_back_and_asked_for_again() -> None:
    """Recorded: istiod says nothing to who asks again for a name of the stream's, be it one that was nobody's or one that is
    gone; and everything is gone, it says, to who only takes names back."""
    one = demanding(resource("held"))
    one.open()
    for name in ("/8.8.8.8", "/10.0.0.1"):
        one.demand(ADDRESS_TYPE, name)
    one.next_demand()
    response = answered(resource("pod", "/10.0.0.1"), removed=("/8.8.8.8",))
    one.answer(response)
    one.satisfied(response, {})
    one.answer(answered(removed=("pod", "held")))
    for name in ("/8.8.8.8", "/10.0.0.1", "/10.0.0.2", "held"):
        assert one.demand(ADDRESS_TYPE, name)
    assert one.next_demand() == Request(ADDRESS_TYPE, (client.NOBODY,), ("/8.8.8.8", "/10.0.0.1", "held"))
    assert one.next_demand() == Request(ADDRESS_TYPE, ("/8.8.8.8", "/10.0.0.1", "/10.0.0.2", "held"))
    assert one.next_demand() is None
    one.satisfied(answered(removed=(client.NOBODY,)), {})
    one.open()
    assert one.next_demand() is None, "a new stream asks for what has no answer, and knows of no name"


def test_who_asks_for_a_service_that_is_held_is_told_anew_of_what_serves_it() -> None:
    """Recorded: istiod tells on demand of pods that are gone, not of those that come to serve a service that was asked for."""
    one = demanding(WEB)
    for _ in range(2):
        one.open()
        assert one.demand(ADDRESS_TYPE, WEB.name)
        assert one.next_demand() == Request(ADDRESS_TYPE, (client.NOBODY,), (WEB.name,))
        assert one.next_demand() == Request(ADDRESS_TYPE, (WEB.name,)) and one.next_demand() is None
        assert one.demand(ADDRESS_TYPE, WEB.name) and one.next_demand() is None, "it is asked for"
        response = answered(WEB, FAR)
        one.answer(response)
        assert one.satisfied(response, {}) == {WEB.name: ""}


def test_a_name_that_is_told_of_before_it_was_asked_for_is_asked_for_yet() -> None:
    """Else its server would not tell who else comes to have that address."""
    one = demanding()
    one.open()
    one.demand(ADDRESS_TYPE, "/10.244.0.8")
    told = answered(FAR)
    one.answer(told)
    assert one.satisfied(told, {}) == {"/10.244.0.8": ""}
    assert one.next_demand() == Request(ADDRESS_TYPE, ("/10.244.0.8",)) and one.next_demand() is None


def test_a_name_that_is_taken_back_is_asked_for_whatever_is_told_meanwhile() -> None:
    """Else its server would tell of it never more: not of its waypoint, nor that it is gone."""
    one = demanding(WEB)
    one.open()
    one.demand(ADDRESS_TYPE, WEB.name)
    assert one.next_demand() == Request(ADDRESS_TYPE, (client.NOBODY,), (WEB.name,))
    on_its_way = answered(WEB)
    one.answer(on_its_way)
    assert one.satisfied(on_its_way, {}) == {WEB.name: ""}
    one.demand(ADDRESS_TYPE, WEB.name)
    assert one.satisfied(on_its_way, {}) == {WEB.name: ""}
    assert one.next_demand() == Request(ADDRESS_TYPE, (WEB.name,)) and one.next_demand() is None


def test_names_that_are_asked_for_again_are_not_more_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ASKED", 2)
    one = demanding()
    one.open()
    for _ in range(9):
        one.demand(ADDRESS_TYPE, "/8.8.8.8")
        while one.next_demand() is not None:
            pass
        one.satisfied(answered(removed=("/8.8.8.8",)), {})
    assert not one.is_spent
    one.answer(answered(*map(resource, "abc")))
    one.answer(answered(removed=tuple("abc")))
    assert one.is_spent, "it takes what is gone for asked for"


def test_demands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "NAMES_PER_REQUEST", 2)
    monkeypatch.setattr(client, "MAX_PENDING", 3)
    monkeypatch.setattr(client, "MAX_ASKED", 3)
    one = demanding()
    for name in "abc":
        assert one.demand(ADDRESS_TYPE, name)
    with pytest.raises(ValueError, match="3 names are being asked for already"):
        one.demand(ADDRESS_TYPE, "d")
    assert one.next_demand() == Request(ADDRESS_TYPE, ("a", "b")) and one.next_demand() == Request(ADDRESS_TYPE, ("c",))
    spent = [one.is_spent]
    one.satisfied(answered(removed=("a",)), {})
    assert one.demand(ADDRESS_TYPE, "d")
    one.next_demand()
    spent.append(one.is_spent)
    one.open()
    assert [*spent, one.is_spent] == [False, True, False], "a server keeps every name of a stream"


# --- both ends

states = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("12"), max_size=4)
asked = st.lists(st.sampled_from(("a", "b", "/a", "/b", "/c", "/z", "d")), max_size=3)


@given(st.lists(st.tuples(states, asked, st.booleans()), min_size=1, max_size=10))
def test_a_client_on_demand_ends_up_with_what_it_asked_for(history: list[tuple[dict[str, str], list[str], bool]]) -> None:
    one, stream = demanding(), None
    held: dict[str, bytes] = {}
    demands: set[str] = set()
    for state, names, breaks in [*history, (history[-1][0], [], False)]:
        current = Snapshot({name: resource(name, f"/{name}", version=version) for name, version in state.items()})
        for name in names:
            if one.demand(ADDRESS_TYPE, name):
                demands.add(name)
        if stream is None or breaks:
            stream = Stream(current)
            stream.server = DeltaServer(BOTH, home=NODE)
            stream.server.receive(one.open()[0])
        stream.state = current
        while (request := one.next_demand()) is not None:
            stream.server.receive(request)
        while (response := stream.push()) is not None:
            for gone in response.removed:
                held.pop(gone, None)
            held |= {found.name: found.value for found in response.resources}
            one.answer(response)
            for name in one.satisfied(response, {}):
                demands.discard(name)
                real = name.removeprefix("/")
                assert (real in state) == (real in held), "an answer says what is"
    assert not demands, "everything asked for was answered"
    assert all(held[name] == f"{name}@{history[-1][0][name]}".encode() for name in held)
