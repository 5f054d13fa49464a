"""On demand: what a decision lacks, who waits for it, how that ends, and the bounds."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import (
    ApplicationTunnel,
    BalancingMode,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Service,
    WeightedWaypoint,
    Workload,
)
from ztunnel import demands, questions
from ztunnel.channel import Demand, FromWorker, Unasked
from ztunnel.demands import Demands
from ztunnel.hbone import Authority
from ztunnel.loop import Loop
from ztunnel.missing import MAX_NAMES, missing_inbound, missing_outbound
from ztunnel.questions import Asker, Questions
from ztunnel.route import Request

pytestmark = pytest.mark.unit

CLIENT = Workload("K//Pod/shop/client", "client", "shop", (ip_address("10.0.0.1"),))
DIALLED = ip_address("10.0.0.2")
WAYPOINT = GatewayAddress(NamespacedHostname("shop", "wp.shop.svc.cluster.local"), 15008)
WAYPOINT_SERVICE = Service("wp", "shop", "wp.shop.svc.cluster.local")
BY_ADDRESS = GatewayAddress(NetworkAddress("", ip_address("10.9.9.9")), 15008)
WEB = Service("web", "shop", "web.shop.svc.cluster.local", (NetworkAddress("", DIALLED),), {80: 8080})
GATEWAY = GatewayAddress(NetworkAddress("net2", ip_address("192.0.2.1")), 15008)
SERVING = Workload("K//Pod/shop/serving", "serving", "shop", services={WEB.key: {}, "shop/wp.shop.svc.cluster.local": {}})
ABROAD = Workload("K//Pod/shop/far", "far", "shop", network="net2", network_gateway=GATEWAY, services={WEB.key: {}})


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        ([], ["/10.0.0.2"]),
        ([WEB], [WEB.key]),
        ([WEB, SERVING], []),
        ([replace(WEB, mode=BalancingMode.PASSTHROUGH)], []),
        ([replace(WEB, vips=(NetworkAddress("", ip_address("10.0.0.0"), 8),))], ["/10.0.0.2", WEB.key]),
        ([Workload("K//Pod/shop/web", "web", "shop", (DIALLED,))], []),
        ([Workload("K//Pod/shop/web", "web", "shop", (DIALLED,), waypoint=BY_ADDRESS)], ["/10.9.9.9"]),
        ([replace(WEB, waypoint=WAYPOINT)], ["shop/wp.shop.svc.cluster.local"]),
        ([replace(WEB, waypoint=WAYPOINT), WAYPOINT_SERVICE], [WAYPOINT_SERVICE.key]),
        ([replace(WEB, waypoint=WAYPOINT), WAYPOINT_SERVICE, SERVING], []),
        (
            [replace(WEB, waypoint=WAYPOINT, weighted_waypoints=(WeightedWaypoint(BY_ADDRESS, 1),)), WAYPOINT_SERVICE],
            [WAYPOINT_SERVICE.key, "/10.9.9.9"],
        ),
        ([WEB, ABROAD], ["net2/192.0.2.1"]),
        ([WEB, ABROAD, Workload("gw", "gw", "istio-system", (ip_address("192.0.2.1"),), network="net2")], []),
    ],
)
def test_what_a_route_lacks(known: list[Workload | Service], missing: list[str]) -> None:
    inventory = Inventory()
    inventory.apply(known, [])
    assert missing_outbound(inventory, "", Request(CLIENT, CLIENT.addresses[0], DIALLED, 80)) == missing


def test_what_a_route_between_networks_lacks() -> None:
    request = Request(replace(CLIENT, network="net1"), CLIENT.addresses[0], DIALLED, 80)
    assert missing_outbound(Inventory(), "net0", request) == ["net0/10.0.0.2", "net1/10.0.0.2"]
    assert missing_outbound(Inventory(), "", request._replace(destination=ip_address("127.0.0.1"))) == []


def test_what_a_request_lacks() -> None:
    inventory, own, local = Inventory(), replace(CLIENT, services={"ext/api.example.com": {}}), CLIENT.addresses[0]

    def missing(host: str, workload: Workload = own) -> list[str]:
        named = Authority(ip_address(host) if host[0].isdigit() else host, 80)
        return missing_inbound(inventory, "", workload, local, named)

    assert missing("10.0.0.1") == []
    assert missing("10.0.0.2") == ["/10.0.0.2"]
    assert missing("10.0.0.2", replace(own, application_tunnel=ApplicationTunnel(False, 0))) == []
    assert missing("api.example.com") == ["ext/api.example.com", "shop/api.example.com"]
    assert missing("db.data.svc.cluster.local") == ["data/db.data.svc.cluster.local", "shop/db.data.svc.cluster.local"]
    inventory.apply([replace(WEB, waypoint=WAYPOINT)], [])
    assert missing(WEB.hostname) == [] and missing("10.0.0.2") == ["shop/wp.shop.svc.cluster.local"]
    inventory.apply([WAYPOINT_SERVICE], [])
    assert missing("10.0.0.2") == []


class Desk:
    """A worker's demands, with time and the mesh in hand."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.loop.now = 100.0
        self.said: list[Demand] = []
        self.demands = Demands(self.loop, self.heard, 5.0, 200.0)  # type: ignore[arg-type]
        self.unasked: list[Unasked] = []
        self.lacks: dict[str, list[str]] = {}
        self.gone: dict[str, str] = {}

    def heard(self, message: FromWorker) -> None:
        (self.said if isinstance(message, Demand) else self.unasked).append(message)  # type: ignore[arg-type]

    def ask(self, who: str, *names: str, pod: str = "p") -> bool:
        self.lacks[who] = list(names)
        return self.demands.ask(
            who, Asker(pod, CLIENT.identity), lambda: self.lacks[who], lambda error: self.gone.update({who: error})
        )

    def names(self) -> list[str]:
        said, self.said[:] = self.said[:], []
        return sorted(name for one in said for name in one.names)


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield Desk()


def test_wait_for_workload(desk: Desk) -> None:
    assert not desk.ask("knows it all")
    assert desk.ask("first", "/10.0.0.2") and desk.ask("second", "/10.0.0.2", "/10.0.0.3")
    assert desk.names() == ["/10.0.0.2", "/10.0.0.3"], "each name once"
    desk.lacks = {"first": [], "second": ["/10.0.0.3"]}
    desk.demands.answered({"/10.0.0.2": "", "stranger": ""})
    assert desk.gone == {"first": ""} and len(desk.demands) == 1
    desk.demands.answered({"/10.0.0.3": ""})
    assert desk.gone == {"first": "", "second": ""}, "an answer may be that there is nothing"
    assert not desk.ask("third", "/10.0.0.3"), "it was answered a moment ago"
    desk.loop.now += demands.FRESH_S
    assert desk.ask("third", "/10.0.0.3")


def test_wait_for_workload_eventually(desk: Desk) -> None:
    """Each answer shows what is missing next, a few times."""
    desk.ask("it", "0")
    for step in ("1", "2", "3"):
        desk.lacks["it"] = [step]
        desk.demands.answered({str(int(step) - 1): ""})
        assert desk.gone == {}
    desk.lacks["it"] = ["4"]
    desk.demands.answered({"3": ""})
    assert desk.gone == {"it": ""} and desk.names() == ["0", "1", "2", "3"]


def test_wait_for_workload_delay_fails(desk: Desk) -> None:
    desk.ask("late", "/10.0.0.2", "shop/web")
    desk.loop.now += 4.9
    desk.demands.deadlines.expire(desk.loop.now)
    assert desk.gone == {}
    desk.loop.now += 0.2
    desk.demands.deadlines.expire(desk.loop.now)
    assert desk.gone == {"late": "the control plane did not tell of /10.0.0.2, shop/web within 5 s"}
    assert len(desk.demands) == 0 and desk.demands.refused == 1
    desk.demands.answered({"/10.0.0.2": ""})
    assert desk.ask("later", "shop/web"), "what was not answered is asked for again"


def test_a_refused_answer_is_passed_on_and_remembered(desk: Desk) -> None:
    desk.ask("it", "shop/bad", "shop/good")
    desk.demands.answered({"shop/bad": "unknown enum"})
    assert desk.gone == {"it": "shop/bad: unknown enum"}
    assert desk.ask("again", "shop/bad") and "again" not in desk.gone, "not while the connection is still being taken in"
    desk.loop.turn(40)
    assert desk.gone["again"] == "shop/bad: unknown enum"


def test_one_pod_does_not_keep_others_from_asking(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demands, "MAX_WAITING_PER_ASKER", 2)
    monkeypatch.setattr(demands, "MAX_WAITING", 3)
    for number in range(3):
        assert desk.ask(f"scan {number}", f"/10.0.0.{number}", pod="scanner")
    assert desk.ask("good", "/10.0.1.1", pod="good") and desk.ask("one too many", "/10.0.1.2", pod="other")
    desk.loop.turn(40)
    assert list(desk.gone) == ["scan 2", "one too many"] and "too many connections wait" in desk.gone["scan 2"]
    desk.demands.forget("scan 0")
    assert desk.ask("after", "/10.0.1.3", pod="scanner"), "there is room again"
    desk.names()
    assert not desk.ask("long", "x" * 1000), "no name is that long: it is nobody's"


def test_a_scan_is_refused_beyond_its_rate_and_nobody_else(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demands, "MAX_WAITING_PER_ASKER", 10_000)
    for number in range(500):
        desk.ask(f"scan {number}", f"shop/{number}", pod="scanner")
    desk.loop.turn(40)
    desk.loop.now = 100.0
    assert len(desk.names()) == 400 == 500 - len(desk.gone), "two seconds' worth at once"
    assert desk.gone["scan 400"] == (
        "the control plane is not asked for shop/400: spiffe://cluster.local/ns/shop/sa/default asks for too much "
        "(WEFT_QUESTIONS_PER_POD)"
    )
    assert desk.unasked == [Unasked(CLIENT.identity)] * 100
    assert desk.ask("good", "shop/good", pod="good") and desk.names() == ["shop/good"]
    assert desk.ask("same", "shop/7", pod="scanner") and desk.names() == [], "who waits for an answer that comes asks nothing"
    assert "same" not in desk.gone
    desk.loop.now += 0.5
    for number in range(500, 700):
        desk.ask(f"scan {number}", f"shop/{number}", pod="scanner")
    assert len(desk.names()) == 100, "what was refused costs nothing, and time brings it back"


def test_strangers_addresses_are_asked_for_at_a_rate_too(desk: Desk) -> None:
    for number in range(1000):
        desk.demands.mention(f"/2001:db8::{number:x}")
    assert len(desk.names()) == 400 and desk.unasked == []


def test_of_how_many_askers_something_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MAX_ASKERS", 2)
    asked = Questions(1.0)
    assert asked.allow("a", MAX_NAMES, 1.0) and not asked.allow("a", 1, 1.0), "one connection's, however low the rate"
    assert asked.allow("b", 8, 1.0) and not asked.allow("a", 1, 1.0) and asked.allow("c", 8, 1.0)
    assert asked.allow("b", 8, 1.0), "silent longest, forgotten"


def test_who_is_gone_is_not_called(desk: Desk) -> None:
    desk.ask("gone", "a", "b")
    desk.demands.forget("gone")
    desk.demands.forget("gone")
    desk.demands.answered({"a": "", "b": ""})
    assert desk.gone == {}
    taken = []

    def take_along(error: str) -> None:
        taken.append(error)
        desk.demands.forget("other")

    desk.demands.ask("one", Asker("p", None), lambda: ["c"] if not taken else [], take_along)
    desk.ask("other", "c")
    desk.demands.answered({"c": ""})
    assert taken == [""] and desk.gone == {}


def test_what_is_merely_mentioned_keeps_nobody_from_waiting(desk: Desk) -> None:
    desk.demands.mention("/10.0.0.9")
    desk.demands.mention("/10.0.0.9")
    assert desk.names() == ["/10.0.0.9"], "once in a while"
    assert desk.ask("it", "/10.0.0.9") and desk.names() == ["/10.0.0.9"]
    desk.demands.answered({"/10.0.0.9": ""})
    desk.demands.mention("/10.0.0.9")
    assert desk.gone == {"it": ""} and desk.names() == []


def test_what_is_remembered_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demands, "MAX_FRESH", 2)
    desk.demands.answered({"a": "", "b": "", "c": ""})
    assert desk.ask("a", "a") and not desk.ask("c", "c")
    for name in "xyz":
        desk.demands.mention(name)
    desk.names()
    desk.demands.mention("x")
    assert desk.names() == ["x"]
