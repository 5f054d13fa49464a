"""What is wrong on a node, from what its parts say."""

from datetime import UTC, datetime, timedelta

import pytest

from cli.health import Certificate, Finding, agent_findings, certificate_findings, certificates, control_findings
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
