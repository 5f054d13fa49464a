"""OpenSSL's configuration of a worker: what a real client then offers."""

import os
import re
import ssl
import subprocess
import sys

import pytest

from ztunnel.openssl_conf import check_pqc, openssl_conf
from ztunnel.workers import keep_in_memory

pytestmark = pytest.mark.unit

HELLO = """
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.minimum_version = ssl.TLSVersion.TLSv1_3
out = ssl.MemoryBIO()
try:
    context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="x").do_handshake()
except ssl.SSLWantReadError:
    print(out.read().hex())
"""
X25519, P256, P384, MLKEM = "001d", "0017", "0018", "11ec"


def client_hello(conf: str) -> str:
    fd = keep_in_memory("conf", conf)
    try:
        environment = os.environ | {"OPENSSL_CONF": f"/proc/self/fd/{fd}"}
        done = subprocess.run(
            [sys.executable, "-c", HELLO], env=environment, pass_fds=[fd], capture_output=True, text=True, timeout=100
        )
        return done.stdout.strip()
    finally:
        os.close(fd)


def test_a_client_offers_istios_suites_and_groups_the_post_quantum_one_first_where_there_is_one() -> None:
    version = ssl.OPENSSL_VERSION_INFO
    groups = [MLKEM, X25519, P256, P384] if version >= (3, 5) else [X25519, P256, P384]
    hello = client_hello(openssl_conf(version, pqc=False))
    length = len(groups) * 2
    assert f"000a{length + 2:04x}{length:04x}{''.join(groups)}" in hello, "supported_groups"
    assert re.search("(000413021301|00061302130100ff)0100", hello), "suites; older versions add their renegotiation signal"


def test_the_compliance_policy_leaves_one_group() -> None:
    assert "Groups = X25519MLKEM768\n" in openssl_conf((3, 5, 0), pqc=True)
    check_pqc((3, 5, 0))
    with pytest.raises(ValueError, match=r"COMPLIANCE_POLICY='pqc': OpenSSL 3\.0\.19 has no X25519MLKEM768: use 3\.5"):
        check_pqc((3, 0, 19))


def test_a_proxy_keeps_the_policy_or_does_not_start() -> None:
    if ssl.OPENSSL_VERSION_INFO >= (3, 5):
        assert f"000a00040002{MLKEM}" in client_hello(openssl_conf(ssl.OPENSSL_VERSION_INFO, pqc=True))
        return
    done = subprocess.run(
        [sys.executable, "-m", "ztunnel", "--node", "n1"],
        env=os.environ | {"COMPLIANCE_POLICY": "pqc"}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("weft-ztunnel: COMPLIANCE_POLICY='pqc': OpenSSL ")
