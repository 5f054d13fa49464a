"""Hops and peers that only their own words name, in access log, metrics and flows."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.flows import connection_flow
from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.workload import NetworkAddress, Service, Workload
from ztunnel.access_log import connection_fields
from ztunnel.baggage import Described
from ztunnel.config_dump import dump_connection, dump_connection_fully
from ztunnel.connection_facts import Facts, facts_of
from ztunnel.connection_record import ConnectionRecord
from ztunnel.flow_feed import connection_event
from ztunnel.metrics import tcp_labels

pytestmark = pytest.mark.unit

ONE, FAR = Identity("cluster.local", "amb", "one"), Identity("cluster.local", "far", "web")
WAYPOINT = Workload(
    "K//Pod/amb/wp-1", "wp-1", "amb", (ip_address("10.0.0.9"),), service_account="wp", workload_name="wp", canonical_name="wp"
)
GATEWAY = replace(WAYPOINT, uid="K//Pod/amb/gtw-1", name="gtw-1", workload_name="gtw", canonical_name="gtw")
CLIENT = Workload("K//Pod/amb/one", "one", "amb", (ip_address("10.0.0.1"),), service_account="one")
SERVICE = Service("web", "amb", "web.amb.svc.cluster.local", (NetworkAddress("", ip_address("10.96.0.1")),), {80: 8080})
OUTBOUND = ConnectionRecord(
    1,
    "pod",
    "outbound",
    "HBONE",
    (ip_address("10.0.0.1"), 40000),
    (ip_address("10.0.0.9"), 15008),
    "10.96.0.1:80",
    (ip_address("10.96.0.1"), 80),
    source_workload=CLIENT.uid,
    source_identity=ONE,
    destination_workload=WAYPOINT.uid,
    destination_identity=WAYPOINT.identity,
    destination_service=SERVICE.key,
    hop="waypoint",
)
SAID = Described(FAR, "canon", "rev7", "deployment", "web", "K2", "r", "z")


def facts(record: ConnectionRecord) -> Facts:
    known = Inventory()
    known.apply([WAYPOINT, GATEWAY, CLIENT, SERVICE], [])
    return facts_of(record, known)


def logged(record: ConnectionRecord) -> dict[str, str | int]:
    return {name: value for name, value, _ in connection_fields(facts(record))}


def test_a_waypoint_is_named_as_what_was_dialled_and_for_what() -> None:
    fields = logged(OUTBOUND)
    assert fields["dst.addr"] == "10.0.0.9:15008" and fields["dst.hbone_addr"] == "10.96.0.1:80"
    assert (fields["dst.workload"], fields["dst.service"]) == ("wp-1", "web.amb.svc.cluster.local")
    event = connection_event(facts(OUTBOUND), "opened", "n1")
    assert (event.destination.pod, str(event.destination.address), event.destination.port) == ("wp-1", "10.0.0.9", 15008)
    assert event.service == SERVICE.key and event.encrypted
    assert connection_flow(event).Summary == "opened, mutual TLS, through waypoint wp-1.amb to 10.96.0.1:80"
    broken = replace(OUTBOUND, flag="CONNECT", error="http status: 503 Service Unavailable")
    failed = connection_flow(connection_event(facts(broken), "refused", "n1")).Summary
    assert failed == "failed: http status: 503 Service Unavailable, through waypoint wp-1.amb to 10.96.0.1:80"
    assert dump_connection(OUTBOUND)["actualDst"] == "10.0.0.9:15008"


def test_who_answers_behind_a_gateway_is_named_by_its_own_words() -> None:
    far = replace(OUTBOUND, protocol="DOUBLEHBONE", hop="gateway", destination_workload=GATEWAY.uid)
    far = replace(far, hbone_destination="web.amb.svc.cluster.local:80", destination_identity=FAR, destination_described=SAID)
    fields = logged(far)
    assert (fields["dst.workload"], fields["dst.namespace"], fields["dst.cluster"]) == ("web", "far", "K2")
    assert fields["dst.identity"] == str(FAR) and fields["dst.hbone_addr"] == "web.amb.svc.cluster.local:80"
    labels = dict(tcp_labels(facts(far), "-"))
    assert (labels["destination_workload"], labels["destination_app"], labels["destination_version"]) == (
        "web",
        "canon",
        "rev7",
    )
    assert labels["connection_security_policy"] == "mutual_tls" and labels["destination_region"] == "r"
    assert facts(far).through == "through gateway gtw-1.amb to web.amb.svc.cluster.local:80"
    assert dump_connection(far)["protocol"] == "DOUBLEHBONE" and dump_connection_fully(0, far)["hop"] == "gateway"
    unheard = replace(far, destination_described=None)
    assert logged(unheard)["dst.workload"] == "gtw-1"


def test_a_client_behind_a_gateway_is_named_by_its_own_words() -> None:
    inbound = replace(OUTBOUND, direction="inbound", hop="", source_workload="", source_identity=FAR, source_described=SAID)
    fields = logged(inbound)
    assert (fields["src.workload"], fields["src.namespace"], fields["src.cluster"]) == ("canon", "far", "K2")
    labels = dict(tcp_labels(facts(inbound), "-"))
    assert (labels["source_workload"], labels["source_canonical_service"]) == ("web", "canon")
    assert labels["source_principal"] == str(FAR)
    silent = replace(inbound, source_described=Described(FAR))
    assert "src.workload" not in logged(silent)
    event = connection_event(facts(silent), "opened", "n1")
    assert (event.source.kind, event.source.namespace) == ("world", "far")


def test_where_neither_end_is_known_there_are_no_labels_of_localities() -> None:
    unknown = replace(OUTBOUND, hop="", source_workload="", destination_workload="")
    assert not [name for name, _ in tcp_labels(facts(unknown), "-") if name.endswith(("_region", "_zone"))]
    labels = dict(tcp_labels(facts(replace(OUTBOUND, hop="", source_workload="")), "-"))
    assert labels["source_region"] == labels["source_zone"] == "unknown" and "destination_zone" in labels
