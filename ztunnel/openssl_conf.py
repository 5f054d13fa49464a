"""Suites and groups of workload TLS, as OpenSSL's configuration: Python's ssl has no call for either. Pure.

A worker finds it under OPENSSL_CONF when its interpreter starts. What Istio's ztunnel offers, with one difference: from
OpenSSL 3.5 on the post-quantum group X25519MLKEM768 is preferred, where Istio's offers it last.
"""

_SUITES = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
_GROUPS = "X25519:P-256:P-384"
# "*": send a key share, so that neither a new nor an old peer costs a round trip more.
_NEW_GROUPS = "*X25519MLKEM768:*X25519:P-256:P-384"
_PQC_GROUPS = "X25519MLKEM768"
_PQC_SINCE = (3, 5)


def check_pqc(version: tuple[int, ...]) -> None:
    """Raises: ValueError where this OpenSSL has no post-quantum group."""
    if version[:2] < _PQC_SINCE:
        raise ValueError(
            f"COMPLIANCE_POLICY='pqc': OpenSSL {'.'.join(map(str, version[:3]))} has no X25519MLKEM768: "
            "use 3.5 or newer, as the node image does, or unset it"
        )


def openssl_conf(version: tuple[int, ...], pqc: bool) -> str:
    """The configuration for an OpenSSL of this version; `pqc` allows the post-quantum group alone."""
    groups = _PQC_GROUPS if pqc else _NEW_GROUPS if version[:2] >= _PQC_SINCE else _GROUPS
    return (
        "openssl_conf = library\n[library]\nssl_conf = contexts\n[contexts]\nsystem_default = workload\n"
        f"[workload]\nCiphersuites = {_SUITES}\nGroups = {groups}\n"
    )
