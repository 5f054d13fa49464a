"""Why the control plane was not reached, said so that somebody can mend it: gRPC's own words, as they were recorded."""

from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from wire.grpc_reason import reason_of
from wire.grpc_tls import Endpoint

pytestmark = pytest.mark.unit

ALL = "failed to connect to all addresses; last error: "
TLS = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
STRANGER = "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK"


def said(code: grpc.StatusCode, details: str | None, files: bool = True) -> str:
    endpoint = Endpoint("c:1", Path("/r.pem") if files else b"", Path("/t") if files else "token", "Kubernetes")
    return reason_of(AioRpcError(code, Metadata(), Metadata(), details), endpoint)


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (
            f"{ALL}UNKNOWN: ipv4:172.30.0.9:15012: Failed to connect to remote host: getsockopt(SO_ERROR): No route to host",
            "No route to host: is it up, and is there a way to it?",
        ),
        (
            f"{ALL}UNKNOWN: ipv6:%5B::1%5D:1: Failed to connect to remote host: connect: Connection refused (111)",
            "Connection refused (111): is it up, and is there a way to it?",
        ),
        (
            f"{ALL}FAILED_PRECONDITION: ipv4:10.0.0.2:1: connect failed: addr: ipv4:10.0.0.2:1 error: Invalid argument",
            "Invalid argument: is it up, and is there a way to it?",
        ),
        (
            f"{ALL}UNKNOWN: ipv4:10.0.0.2:15012: {TLS}{STRANGER}",
            "its certificate is refused: unable to get local issuer certificate: /r.pem must hold the root that signed it "
            "(`weft certificates roots` prints it)",
        ),
        (
            f"{ALL}UNKNOWN: ipv4:10.0.0.2:15012: {TLS}CERTIFICATE_VERIFY_FAILED: certificate is not yet valid: OK",
            "its certificate is refused: certificate is not yet valid: compare the clocks of both machines",
        ),
        (f"{ALL}UNKNOWN: ipv4:10.0.0.2:1: tcp handshaker shutdown", "no answer in time: is it up, and is there a way to it?"),
        ("Socket closed", "Socket closed"),
        (None, "no reason given"),
    ],
)
def test_nobody_was_reached(details: str | None, reason: str) -> None:
    assert said(grpc.StatusCode.UNAVAILABLE, details) == f"unavailable: {reason}"


def test_who_is_reached_and_does_not_answer() -> None:
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    assert said(late, "Deadline Exceeded") == "deadline exceeded: no answer in time: is it up, and is there a way to it?"


def test_a_token_that_is_not_taken() -> None:
    refused, words = grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure"
    assert said(refused, words).startswith(f"unauthenticated: {words}: the token in /t is not, or no longer, of a node")
    assert said(refused, words, files=False) == f"unauthenticated: {words}"
    assert said(refused, "request impersonation authentication failure").endswith("impersonation authentication failure")


def test_roots_that_are_no_file_are_not_named() -> None:
    details = f"{ALL}UNKNOWN: ipv4:10.0.0.2:15012: {TLS}{STRANGER}"
    assert said(grpc.StatusCode.UNAVAILABLE, details, files=False).endswith("refused: unable to get local issuer certificate")
