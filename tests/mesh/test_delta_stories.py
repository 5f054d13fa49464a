"""Delta xDS on demand, both ends, while everything changes: what is under way meets what is asked for, in random order."""

import random
from collections import deque

import pytest

from mesh.delta import DeltaClient, DeltaServer, Request, Resource, Response, Snapshot

pytestmark = pytest.mark.unit

TYPE = "type"
SERVICES = [f"ns/s{number}" for number in range(4)]
NAMES = [*(f"/10.0.0.{last}" for last in range(6)), *(f"/10.1.0.{last}" for last in range(4)), *SERVICES, "pod1", "/9.9.9.9"]


class Story:
    """A client and its server, the messages between them, and a mesh that changes."""

    def __init__(self, seed: int, cuts: bool) -> None:
        self.dice = random.Random(seed)
        self.cuts = cuts
        self.client = DeltaClient([TYPE], on_demand=[TYPE])
        self.held: dict[str, Resource] = {}
        self.waiting: set[str] = set()
        self.asked: set[str] = set()
        """On the present stream."""
        self.snapshot = Snapshot({})
        self.number = 0
        self.connect()

    def connect(self) -> None:
        self.server = DeltaServer([TYPE], home="@n0")
        self.up, self.down, self.asked = deque[Request](self.client.open()), deque[Response](), set(self.waiting)

    def change(self) -> None:
        resources = dict(self.snapshot.resources)
        if self.dice.random() < 0.5:
            groups = (f"@n{self.dice.randrange(2)}", *self.dice.sample(SERVICES, self.dice.randrange(3)))
            name, alias = f"pod{self.dice.randrange(6)}", f"/10.0.0.{self.dice.randrange(6)}"
        else:
            name, alias, groups = self.dice.choice(SERVICES), f"/10.1.0.{self.dice.randrange(4)}", ()
        if resources.pop(name, None) is None or self.dice.random() < 0.6:
            resources[name] = Resource(name, str(self.dice.randrange(99)), b"", (alias,), groups)
        self.snapshot = Snapshot(resources)
        self.push()

    def push(self) -> None:
        self.number += 1
        response = self.server.push(TYPE, self.snapshot, str(self.number))
        if response is not None:
            self.down.append(response)

    def deliver_up(self) -> None:
        if self.up:
            self.server.receive(self.up.popleft())
            self.push()

    def deliver_down(self) -> None:
        if not self.down:
            return
        response = self.down.popleft()
        for name in response.removed:
            self.held.pop(name, None)
        self.held.update((one.name, one) for one in response.resources)
        self.up.append(self.client.answer(response))
        self.waiting -= self.client.satisfied(response, {}).keys()

    def demand(self) -> None:
        name = self.dice.choice(NAMES)
        self.asked.add(name)
        if self.client.demand(TYPE, name):
            self.waiting.add(name)

    def send(self) -> None:
        request = self.client.next_demand()
        if request is not None:
            self.up.append(request)

    def cut(self) -> None:
        if self.cuts and self.dice.random() < 0.1:
            self.connect()

    def run(self) -> None:
        steps = (self.change, self.deliver_up, self.deliver_down, self.demand, self.send, self.cut)
        for step in self.dice.choices(steps, (1, 4, 4, 2, 4, 1), k=300):
            step()
        for _ in range(500):
            self.send()
            self.deliver_up()
            self.deliver_down()
        assert not self.up and not self.down and self.client.next_demand() is None, "there is an end to it"


@pytest.mark.parametrize("cuts", [False, True])
@pytest.mark.parametrize("seed", [*range(16), 372, 390])
def test_whatever_is_under_way_a_client_ends_up_with_what_it_asked_for(seed: int, cuts: bool) -> None:
    """In the last two an address is told of, as a service's pod, before the question about it has left."""
    story = Story(seed, cuts)
    story.run()
    held, snapshot = story.held, story.snapshot
    assert not story.waiting, "each question has its answer"
    assert {name: one.version for name, one in held.items()} == story.client.versions(TYPE)
    assert all(snapshot.versions.get(name) == one.version for name, one in held.items()), "nothing is gone or stale"
    assert {name for name, one in snapshot.resources.items() if "@n0" in one.groups} <= held.keys(), "a node's own pods"
    meant = {found for name in story.asked for found in snapshot.find(name)}
    assert meant <= held.keys()
    assert {member for name in held for member in snapshot.members(name)} <= held.keys()
