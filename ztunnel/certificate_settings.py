"""What this proxy is told about its certificates, and about TLS: who gives them, for how long, what is spoken."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ztunnel.control_plane import socket_address
from ztunnel.variables import choice, duration, truth

_LONGEST_LIFE_S = 10 * 365 * 86_400


def certificate_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields of ztunnel.config.Config about them. Raises: ValueError naming the variable, the reason and the mend."""
    return {
        "secret_ttl_s": _secret_ttl(environment),
        **_spire(environment),
        "fake_ca": _fake_ca(environment),
        "crl": Path(environment["CRL_PATH"]) if environment.get("CRL_PATH") else None,
        "pqc": _pqc(environment),
        "tls12": truth("TLS12_ENABLED", environment, False),
    }


def _secret_ttl(environment: Mapping[str, str]) -> int:
    text = environment.get("SECRET_TTL") or "24h"
    life_s = duration("SECRET_TTL", text)
    if 0 < life_s < 1 or life_s > _LONGEST_LIFE_S:
        raise ValueError(f"SECRET_TTL={text!r}: from 1s to 10y, or 0s for what the CA gives unasked")
    return int(life_s)


def _spire(environment: Mapping[str, str]) -> dict[str, str]:
    """The agent that gives certificates, where one does; of two sockets the one that has all pods' wins."""
    if choice("CA_PROVIDER", environment, "Citadel", ("Citadel", "spire")) == "Citadel":
        return {}
    for variable, field_name in (("SPIRE_ADMIN_SOCKET", "spire_admin"), ("SPIFFE_ENDPOINT_SOCKET", "spiffe_endpoint")):
        if value := environment.get(variable):
            return {field_name: socket_address(variable, value)}
    raise ValueError(
        "CA_PROVIDER='spire': SPIRE_ADMIN_SOCKET is not set: name the SPIRE agent's admin socket "
        "(or, for the identities of this proxy alone, SPIFFE_ENDPOINT_SOCKET)"
    )


def _fake_ca(environment: Mapping[str, str]) -> bool:
    """Identities that prove nothing are for a mesh that is a file: whoever has another one set this by mistake."""
    if not truth("FAKE_CA", environment, False):
        return False
    mend = "unset FAKE_CA, or, for a test"
    if environment.get("XDS_ADDRESS") != "" or not (environment.get("LOCAL_XDS_PATH") or environment.get("LOCAL_XDS")):
        raise ValueError(f"FAKE_CA='true': never in a mesh with a control plane: {mend}, set XDS_ADDRESS='' and LOCAL_XDS_PATH")
    for name in ("CA_ADDRESS", "CA_PROVIDER", "KUBERNETES_SERVICE_HOST"):
        if environment.get(name):
            raise ValueError(f"FAKE_CA='true': {name} is set, so there is a CA: {mend}, unset {name}")
    return True


def _pqc(environment: Mapping[str, str]) -> bool:
    policy = environment.get("COMPLIANCE_POLICY", "")
    if policy not in ("", "pqc"):
        raise ValueError(f"COMPLIANCE_POLICY={policy!r}: write pqc or leave it empty")
    if policy and truth("TLS12_ENABLED", environment, False):
        raise ValueError("TLS12_ENABLED='true': TLS 1.2 has no post-quantum group: leave it out with COMPLIANCE_POLICY='pqc'")
    return bool(policy)
