"""Why a call to a control plane or CA failed: gRPC's words, cut to what happened, and the mend where they tell it."""

import re
from pathlib import Path

import grpc.aio

from wire.grpc_tls import Endpoint

_ATTEMPT = re.compile(r".*last error: (?:[A-Z_]+: )?(?:ipv[46]:\S+: )?", re.DOTALL)
"""What precedes the reason of an attempt to connect."""
_TLS = re.compile(r".*CERTIFICATE_VERIFY_FAILED: (.+?)(?:: OK)?", re.DOTALL)
_UNREACHED = re.compile(r"(?:Failed to connect to remote host|connect failed): (?:.*: )?([^:]+)")
_GIVEN_UP = "tcp handshaker shutdown"
"""Nothing came back from its address within the time of an attempt."""
_STRANGER = ("local issuer", "self signed", "self-signed", "signature failure")
_CLOCK = ("expired", "not yet valid")


def reason_of(error: grpc.aio.AioRpcError, endpoint: Endpoint | None = None) -> str:
    """One sentence; `endpoint`: whom the call went to, where its files may be to blame."""
    said = _ATTEMPT.sub("", error.details() or "no reason given", count=1)
    if refused := _TLS.fullmatch(said):
        said = f"its certificate is refused: {refused[1]}{_certificate_mend(refused[1], endpoint)}"
    elif unreached := _UNREACHED.fullmatch(said):
        said = f"{unreached[1]}: is it up, and is there a way to it?"
    elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or said == _GIVEN_UP:
        said = "no answer in time: is it up, and is there a way to it?"
    elif error.code() is grpc.StatusCode.UNAUTHENTICATED and said == "request authenticate failure":
        said += _token_mend(endpoint)
    return f"{error.code().name.lower().replace('_', ' ')}: {said}"


def _certificate_mend(reason: str, endpoint: Endpoint | None) -> str:
    if any(word in reason for word in _CLOCK):
        return ": compare the clocks of both machines"
    if endpoint is not None and isinstance(endpoint.root, Path) and any(word in reason for word in _STRANGER):
        return f": {endpoint.root} must hold the root that signed it (`weft certificates roots` prints it)"
    return ""


def _token_mend(endpoint: Endpoint | None) -> str:
    if endpoint is not None and isinstance(endpoint.token, Path):
        return f": the token in {endpoint.token} is not, or no longer, of a node that it knows (`weft token NODE` prints one)"
    return ""
