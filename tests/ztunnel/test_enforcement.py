"""Policy where it is enforced: refused with a status and a record, and taken back from what is already open."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.workload import TunnelProtocol
from tests.strict import STRICT
from tests.ztunnel.test_statuses import Asker
from tests.ztunnel.world import CLIENT, VIP, World, assert_reset, world
from ztunnel.channel import Opened, UpdateInventory, UpdatePolicies

pytestmark = pytest.mark.kernel


def allow(*accounts: str) -> Policy:
    principals = tuple(StringMatch("exact", f"cluster.local/ns/shop/sa/{account}") for account in accounts)
    return Policy("shop", "who", Scope.NAMESPACE, Action.ALLOW, (((Match(principals=principals),),),))


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world("policy") as made:
        made.start()
        yield made


@pytest.fixture
def mesh(shared: World) -> Iterator[World]:
    shared.settle()
    yield shared
    shared.server.worker.tell(UpdatePolicies([], ["shop/who", STRICT.key]))
    for pod in (shared.client, shared.server):
        pod.worker.tell(UpdateInventory([shared.server.workload], []))


@pytest.fixture
def app(mesh: World) -> Iterator[socket.socket]:
    with mesh.server.listen(8080) as listener:
        yield listener


def open_connection(mesh: World, app: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = mesh.client.connect(VIP, 80)
    client.sendall(b"x")
    server, _ = app.accept()
    server.settimeout(40)
    assert server.recv(1) == b"x"
    return client, server


def test_a_request_that_no_policy_allows_gets_401_and_a_record(mesh: World, app: socket.socket) -> None:
    mesh.server.worker.tell(UpdatePolicies([allow("somebody")], []))
    mesh.server.worker.settle()
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    denied = mesh.server.worker.closed()
    assert denied.flag == "DENY" and denied.policy == ""
    assert denied.error == "connection closed due to policy rejection: allow policies exist, but none allowed"
    mine = mesh.client.worker.closed()
    assert (mine.flag, mine.error) == ("CONNECT", "http status: 401 Unauthorized")
    assert not [message for message in mesh.server.worker.heard if isinstance(message, Opened)]


def test_who_asks_the_same_from_the_same_address_is_judged_as_who_it_is(mesh: World, app: socket.socket) -> None:
    """One tunnel after the other: what is remembered of one is not taken for another's."""
    mesh.server.worker.tell(UpdatePolicies([allow("client")], []))
    mesh.server.worker.settle()
    for account, status in (("client", "200"), ("other", "401"), ("client", "200"), ("client", "200"), ("other", "401")):
        asker = Asker(mesh, CLIENT._replace(service_account=account))
        assert asker.ask((":method", "CONNECT"), (":authority", f"{mesh.server.address}:8080"))[0] == status, account
        asker.close()
    told = [mesh.server.worker.closed() for _ in range(5)]
    assert [one.source_identity.service_account for one in told if one.source_identity and one.flag == "DENY"] == ["other"] * 2


def test_a_deny_policy_is_named(mesh: World, app: socket.socket) -> None:
    deny = replace(allow("client"), action=Action.DENY)
    mesh.server.worker.tell(UpdatePolicies([deny], []))
    mesh.server.worker.settle()
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    denied = mesh.server.worker.closed()
    assert denied.policy == "shop/who" and denied.error.endswith("explicitly denied by: shop/who")


def test_an_allowed_connection_names_its_policy(mesh: World, app: socket.socket) -> None:
    mesh.server.worker.tell(UpdatePolicies([allow("client")], []))
    mesh.server.worker.settle()
    client, server = open_connection(mesh, app)
    assert mesh.server.worker.wait_for(Opened).record.policy == "shop/who"
    client.close()
    server.close()


def test_a_change_closes_only_what_it_forbids(mesh: World, app: socket.socket) -> None:
    mesh.server.worker.tell(UpdatePolicies([allow("client")], []))
    client, server = open_connection(mesh, app)
    mesh.server.worker.tell(UpdatePolicies([allow("client", "other")], []))
    client.sendall(b"y")
    assert server.recv(1) == b"y"
    mesh.server.worker.tell(UpdatePolicies([allow("other")], []))
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    closed = mesh.server.worker.closed()
    assert closed.flag == "DENY" and "policy change" in closed.error
    mesh.server.worker.tell(UpdatePolicies([allow("client")], []))
    mesh.server.worker.settle()
    client, server = open_connection(mesh, app)  # the tunnel itself lived on
    client.close()
    server.close()


def test_a_workloads_own_list_takes_effect_on_what_is_open(mesh: World, app: socket.socket) -> None:
    deny = replace(allow("client"), action=Action.DENY, scope=Scope.WORKLOAD_SELECTOR)
    mesh.server.worker.tell(UpdatePolicies([deny], []))
    client, server = open_connection(mesh, app)
    listed = replace(mesh.server.workload, authorization_policies=("shop/who",))
    mesh.server.worker.tell(UpdateInventory([listed], []))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert mesh.server.worker.closed().policy == "shop/who"
    server.close()


def test_plain_text_is_refused_under_strict_and_allowed_without(mesh: World, app: socket.socket) -> None:
    plain = replace(mesh.server.workload, protocol=TunnelProtocol.NONE)
    mesh.client.worker.tell(UpdateInventory([plain], []))
    client, server = open_connection(mesh, app)
    opened = mesh.server.worker.wait_for(Opened).record
    assert opened.protocol == "TCP" and opened.source_identity is None
    assert opened.destination_service == mesh.service.key and opened.source_workload == mesh.client.workload.uid
    strict = replace(mesh.server.workload, authorization_policies=(STRICT.key,))
    mesh.server.worker.tell(UpdatePolicies([STRICT], []))
    mesh.server.worker.tell(UpdateInventory([strict], []))
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    client.close()
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    mesh.server.worker.closed(lambda record: "policy change" in record.error)
    refused = mesh.server.worker.closed(lambda record: "policy rejection" in record.error)
    assert refused.flag == "DENY" and refused.protocol == "TCP" and refused.policy == STRICT.key
    mesh.client.worker.tell(UpdateInventory([mesh.server.workload], []))
    mesh.client.worker.settle()
    client, server = open_connection(mesh, app)  # with an identity it is welcome
    client.close()
    server.close()
