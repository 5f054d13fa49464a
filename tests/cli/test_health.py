"""What is wrong on a node, from what its parts say."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli.health import (
    Certificate,
    Finding,
    agent_findings,
    certificate_findings,
    certificates,
    control_findings,
    proxy_findings,
)
from mesh.proto import agent_pb2, control_pb2

pytestmark = pytest.mark.unit
_NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_agent() -> None:
    said = ["pod demo/web is failed: no netns", "warning: map original is 90 % full (9 of 10)"]
    found = list(agent_findings("n", agent_pb2.StatusResponse(problems=said)))
    assert found == [Finding("n", said[0]), Finding("n", "map original is 90 % full (9 of 10)", warning=True)]


def _certificate(left: timedelta, state: str = "Available") -> Certificate:
    return Certificate("spiffe://cluster.local/ns/a/sa/b", state, "1", _NOW + left - timedelta(hours=24), _NOW + left)


@pytest.mark.parametrize(
    ("certificate", "expected", "warning"),
    [
        (_certificate(timedelta(hours=12)), None, False),
        (_certificate(timedelta(hours=2)), "expires in 2h and was not renewed", True),
        (_certificate(-timedelta(minutes=3)), "expired 3m ago", False),
        (_certificate(timedelta(hours=12), "Unavailable: the CA refused"), "Unavailable: the CA refused", False),
        (Certificate("spiffe://x", "Initializing"), "Initializing", True),
    ],
)
def test_certificate(certificate: Certificate, expected: str | None, warning: bool) -> None:
    found = list(certificate_findings("n", [certificate], _NOW))
    if expected is None:
        assert found == []
    else:
        assert [(expected in one.text, one.warning) for one in found] == [(True, warning)]


def test_certificates_that_are_missing_for_one_reason_are_one_finding() -> None:
    names = [f"spiffe://cluster.local/ns/a/sa/{name}" for name in "bcd"]
    refused = [Certificate(name, f"Unavailable: CA c:1: {name}: unauthenticated: no") for name in names]
    found = [*refused, Certificate("spiffe://x", "Unavailable: SPIRE s: no entry gives spiffe://x: register one")]
    assert [one.text for one in certificate_findings("n", found, _NOW)] == [
        f"certificate of {names[0]} and 2 more: Unavailable: CA c:1: unauthenticated: no",
        "certificate of spiffe://x: Unavailable: SPIRE s: no entry gives spiffe://x: register one",
    ]


def test_a_proxy_without_its_control_plane_is_told_of_once() -> None:
    away = {"controlPlane": {"address": "c:1", "connected": False, "error": "refused"}}
    said = ["the proxy's control plane c:1 is away (refused): what it knows of the mesh stays in force"]

    def found(dump: dict[str, Any], agent: agent_pb2.StatusResponse | None) -> list[str]:
        return [one.text for one in proxy_findings("n", dump, agent)]

    connected = agent_pb2.StatusResponse(control=agent_pb2.ControlState(address="c:1", connected=True))
    assert found(away, connected) == found(away, None) == said
    same, other = (
        agent_pb2.StatusResponse(control=agent_pb2.ControlState(address=address, error="refused")) for address in ("c:1", "c:2")
    )
    assert found(away, same) == [] and found(away, other) == said
    assert found({"controlPlane": {"address": "c:1", "connected": True, "error": ""}}, None) == []
    assert found({"controlPlane": None}, None) == found({}, None) == []  # by wish; another proxy than weft's


def test_silent_workers_of_a_proxy_are_told_of() -> None:
    (found,) = proxy_findings("n", {"silentWorkers": 1}, None)
    assert found.text == "1 of the proxy's data workers did not answer: what they carry is not counted" and not found.warning
    assert list(proxy_findings("n", {"silentWorkers": None}, None)) == []


def test_certificates_of_a_config_dump() -> None:
    dump = {
        "certificates": [
            {"identity": "spiffe://cluster.local/ns/b/sa/b", "state": "Initializing", "certChain": []},
            {
                "identity": "spiffe://cluster.local/ns/amb/sa/default",
                "state": "Available",
                "certChain": [
                    {
                        "expirationTime": "2026-11-22T00:03:18Z",
                        "pem": "LS0t",
                        "serialNumber": "320349788213747500021244275428675198143",
                        "validFrom": "2026-11-21T00:01:18Z",
                    }
                ],
                "rootCerts": [],
            },
        ]
    }
    first, second = certificates(dump)
    assert (first.identity, first.state) == ("spiffe://cluster.local/ns/amb/sa/default", "Available")
    assert first.not_after == datetime(2026, 11, 22, 0, 3, 18, tzinfo=UTC)
    assert second.left_s(_NOW) is None
    assert certificates({}) == []


def test_control() -> None:
    status = control_pb2.StatusResponse(
        nodes=[control_pb2.ConnectedNode(node="a", client="ztunnel~a", last_nack="address x: bad")],
        problems=[
            control_pb2.Problem(file="a.yaml", object="Pod demo/x", field="spec.containers", reason="required"),
            control_pb2.Problem(file="b.yaml", object="Ingress demo/y", reason="kind skipped", warning=True),
        ],
        root_expires_unix_s=int(_NOW.timestamp()) + 86400,
    )
    found = [(one.text, one.warning) for one in control_findings(status, _NOW)]
    assert found == [
        ("a.yaml: Pod demo/x: spec.containers: required", False),
        ("b.yaml: Ingress demo/y: kind skipped", True),
        ("ztunnel~a refused a configuration: address x: bad", False),
        ("the root certificate expires in 1d", True),
    ]
