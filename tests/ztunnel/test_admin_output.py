"""What leaves the proxy for operators: the config dump without secrets, log levels, and output that never blocks."""

import asyncio
import base64
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.identity import Identity
from ztunnel import config_dump, line_output
from ztunnel.ca import read_chain
from ztunnel.config import read_config
from ztunnel.connection_record import ConnectionRecord
from ztunnel.line_output import LineOutput
from ztunnel.log_levels import Level, LogLevels
from ztunnel.shown_config import dump_config
from ztunnel.zds_session import PodInfo

pytestmark = pytest.mark.unit

URI = "spiffe://cluster.local/ns/demo/sa/web"
WEB = Identity.parse(URI)


def test_certificates_are_shown_whole_and_keys_never(authority: Any, other_authority: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = [authority.workload(key.public_key(), URI).decode(), authority.root_pem.decode()]
    certificate = read_chain(WEB, key, chain, time.time())
    shown, waiting = config_dump.dump_certificates([(WEB, "Available", certificate), (WEB, "Initializing", None)])
    assert (shown["identity"], shown["state"], len(shown["certChain"]), len(shown["rootCerts"])) == (URI, "Available", 1, 1)
    leaf = shown["certChain"][0]
    assert leaf["serialNumber"].isdigit() and leaf["validFrom"].endswith("Z") and len(leaf["expirationTime"]) == 20
    assert waiting == {"identity": URI, "state": "Initializing", "certChain": [], "rootCerts": []}
    assert "federatedRootCerts" not in shown
    partners = replace(certificate, federated=(("absent.net", b""), ("partner.net", other_authority.root_pem)))
    (federated,) = config_dump.dump_certificates([(WEB, "Available", partners)])
    (domain, absent), (_, (root,)) = federated.pop("federatedRootCerts").items()
    assert (
        federated == shown
        and (domain, absent) == ("absent.net", [])
        and base64.b64decode(root["pem"]) == other_authority.root_pem
    )
    assert "PRIVATE" not in json.dumps(shown) and certificate.key_pem.decode() not in json.dumps(shown)


def test_config_has_istios_keys_and_no_header_values() -> None:
    config = read_config(["--node", "n1"], {"XDS_HEADER_X": "hush", "NETWORK": "net1", "ISTIO_META_MY_OWN": "a"}, 2)
    shown = dump_config(config)
    assert shown["nodeMetadata"] == shown["proxyMetadata"] == {"MY_OWN": "a"}  # names that others gave stay as they are
    assert (shown["clusterId"], shown["network"], shown["xds"]["headers"]) == ("Kubernetes", "net1", ["x"])
    assert "hush" not in json.dumps(shown)


ISTIOS_CONFIG = """
adminAddr altCaHostname altXdsHostname caAddress caHeaders caRootCert clusterDomain clusterId connectionWindowSize crlPath
dnsProxy dnsProxyAddr dnsResolverCfg enableEnhancedBaggage fakeCa fakeSelfInbound frameSize illegalPorts inboundAddr
inboundPlaintextAddr
inpodPortReuse inpodUds ipv6Enabled localNode localhostAppTunnel network numWorkerThreads outboundAddr packetMark
poolMaxStreamsPerConn poolUnusedReleaseTimeout preferedServiceNamespace proxy proxyArgs proxyMetadata proxyMode
proxyWorkloadInformation readinessAddr requireOriginalSource secretTtl selfTerminationDeadline socketConfig socks5Addr
statsAddr windowSize xdsAddress xdsHeaders xdsOnDemand xdsRootCert ztunnelIdentity ztunnelWorkload
"""
"""Of the build of August 2026, but for its resolver's options, which are those of a library."""


def test_config_has_all_of_istios_keys_with_its_shapes() -> None:
    usual = dump_config(read_config(["--node", "n1"], {}, 2))
    assert usual.keys() > set(ISTIOS_CONFIG.split())
    assert (usual["adminAddr"], usual["statsAddr"]) == ({"Localhost": [True, 15000]}, {"SocketAddr": "[::]:15020"})
    assert (usual["dnsProxyAddr"], usual["illegalPorts"]) == ({"Localhost": [True, 15053]}, [15001, 15006, 15008])
    assert usual["secretTtl"] == {"secs": 86400, "nanos": 0} and usual["socketConfig"]["keepaliveTime"] == {
        "secs": 180,
        "nanos": 0,
    }
    assert (usual["proxyMode"], usual["xdsAddress"], usual["fakeCa"]) == ("Shared", "https://localhost:15012", False)
    assert (usual["proxyArgs"], usual["fakeSelfInbound"]) == ("--node n1", False)
    other = dump_config(
        read_config(
            ["--node", "n1"],
            {
                "IPV6_ENABLED": "false", "CONNECTION_TERMINATION_DEADLINE": "1500ms", "XDS_ADDRESS": "",
                "PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b/c", "UNSTABLE_ENABLE_SOCKS5": "true", "CRL_PATH": "/crl",
                "ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:53", "POD_NAME": "z", "POD_NAMESPACE": "i", "SERVICE_ACCOUNT": "s",
            },
            2,
        )
    )  # fmt: skip
    assert other["selfTerminationDeadline"] == {"secs": 1, "nanos": 500_000_000} and other["inboundAddr"] == "0.0.0.0:15008"
    assert (other["xdsAddress"], other["packetMark"], other["proxyMode"]) == (None, None, "Dedicated")
    assert other["proxyWorkloadInformation"] == {"namespace": "a", "name": "b", "serviceAccount": "c"}
    assert (other["socks5Addr"], other["illegalPorts"][-1], other["crlPath"]) == ("127.0.0.1:15080", 15080, "/crl")
    assert other["dnsProxyAddr"] == {"SocketAddr": "127.0.0.1:53"}
    renamed = dump_config(
        read_config(["--node", "n1"], {"ISTIO_META_DNS_PROXY_ADDR": "localhost:53", "IPV6_ENABLED": "false"}, 2)
    )
    assert renamed["dnsProxyAddr"] == {"Localhost": [False, 53]}
    assert other["ztunnelIdentity"] == "spiffe://cluster.local/ns/i/sa/s" and other["ztunnelWorkload"]["name"] == "z"


def test_pods_with_their_connections() -> None:
    record = ConnectionRecord(
        1, "u1", "inbound", "HBONE", (ip_address("10.0.0.2"), 99), (ip_address("fd00::1"), 15008), "[fd00::1]:80"
    )
    stray = ConnectionRecord(2, "gone", "outbound", "TCP", (ip_address("10.0.0.2"), 99), (ip_address("10.0.0.3"), 80))
    pods = config_dump.dump_pods([PodInfo("u1", "demo", "web", "sa")], [PodInfo("u2", "demo", "db", "sa")], [record, stray])
    assert pods["u1"]["state"] == "Up" and pods["u2"]["state"] == "Pending" and "gone" not in pods
    assert pods["u1"]["connections"] == {
        "inbound": [{"src": "10.0.0.2:99", "originalDst": None, "actualDst": "[fd00::1]:80", "protocol": "HBONE"}],
        "outbound": [],
    }
    assert pods["u1"]["info"] == {"name": "web", "namespace": "demo", "serviceAccount": "sa"}


def test_where_clients_meant_to_go_is_shown_as_istios_ztunnel_shows_it() -> None:
    pod, client, hostname = ip_address("10.1.0.5"), (ip_address("10.2.0.2"), 99), "web.demo.svc.cluster.local"
    tunnelled = ConnectionRecord(1, "u1", "inbound", "HBONE", client, (pod, 15008), "10.1.0.5:80")
    guessed = replace(tunnelled, destination_service=f"demo/{hostname}")
    by_name = replace(guessed, forwarded_host=hostname)
    plain = ConnectionRecord(2, "u1", "inbound", "TCP", client, (pod, 80), destination_service=f"demo/{hostname}")
    out = ConnectionRecord(3, "u1", "outbound", "HBONE", client, (pod, 15008), "10.1.0.5:80", (ip_address("10.96.0.1"), 80))
    shown = [config_dump.dump_connection(one) for one in (tunnelled, guessed, by_name, plain, out)]
    assert [one["originalDst"] for one in shown] == [None, None, hostname, None, "10.96.0.1:80"]
    assert [one["actualDst"] for one in shown] == [*["10.1.0.5:80"] * 4, "10.1.0.5:15008"]


@pytest.fixture
def levels() -> Iterator[list[Level]]:
    root = logging.getLogger().level
    yield []
    logging.getLogger().setLevel(root)


def test_log_levels(levels: list[Level]) -> None:
    changes: list[int] = []
    log_levels = LogLevels("info,quic::udp=off", levels.append)
    assert log_levels.text == "info,quic.udp=off" and logging.getLogger("quic.udp").level > logging.CRITICAL
    log_levels.on_change = lambda: changes.append(logging.getLogger().level)
    log_levels.set("warn,access=debug,wire.xds:error")
    assert logging.getLogger().level == logging.WARNING and levels[-1] is Level.DEBUG
    assert logging.getLogger("wire.xds").level == logging.ERROR
    assert log_levels.text == "warn,quic.udp=off,access=debug,wire.xds=error"
    assert log_levels.levels == {"": 30, "quic.udp": 100, "wire.xds": 40}
    for wrong in ("loud", "", "access=", "info,access=loud"):
        with pytest.raises(ValueError, match=r"log level .*: write one of error, warn, info"):
            log_levels.set(wrong)
        with pytest.raises(ValueError, match=r"log level .*: write one of error, warn, info"):
            log_levels.reset(wrong or ",")
    assert logging.getLogger().level == logging.WARNING
    log_levels.set("error")
    assert levels[-1] is Level.DEBUG, "what was said of one scope stays"
    log_levels.reset()
    assert logging.getLogger().level == logging.INFO and levels[-1] is Level.INFO
    assert changes == [logging.WARNING, logging.ERROR, logging.INFO]
    assert logging.getLogger("wire.xds").level == logging.NOTSET and log_levels.text == "info,quic.udp=off"
    log_levels.reset("debug,dns=info")
    assert log_levels.text == "debug,quic.udp=off,dns=info"
    before = len(changes)
    with pytest.raises(ValueError, match="more than 100 scopes: reset them"):
        log_levels.set("error," + ",".join(f"tests.scope{number}=off" for number in range(99)))
    assert log_levels.text == "debug,quic.udp=off,dns=info" and len(changes) == before


def test_a_turn_with_more_lines_than_the_queue_holds_loses_some_and_not_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that ends takes tens of thousands of connections along, each of which has its line."""
    monkeypatch.setattr(line_output, "_MAX_BYTES", 400_000)
    path, line = tmp_path / "log", "x" * 99 + "\n"

    async def run() -> int:
        with path.open("wb") as file:
            output = LineOutput(file.fileno())
            for _ in range(10_000):
                output.write(line)
            await output.drain(100)
            return output.lost

    lost = asyncio.run(run())
    written = path.stat().st_size // len(line)
    assert written + lost == 10_000 and written > 3000


def test_output_keeps_order_and_drops_what_nobody_reads(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    monkeypatch.setattr(line_output, "_MAX_BYTES", 400_000)

    async def run() -> None:
        read_end, write_end = os.pipe()
        output = LineOutput(write_end)
        output.write("one\n")
        output.write("two\n")
        await output.drain()
        assert os.read(read_end, 100) == b"one\ntwo\n"
        for _ in range(100):  # nobody reads: who waited here would wait for ever
            output.write("x" * 9999 + "\n")
            await asyncio.sleep(0)
        assert 50 < output.lost < 70
        os.close(read_end)
        before = output.lost
        output.write("to nobody\n")
        await output.drain(0.2)
        await eventually(lambda: output.lost > before)

    asyncio.run(run())
