"""The PROXY header, byte for byte as Istio's ztunnel wrote it."""

from ipaddress import ip_address

import pytest

from mesh.identity import Identity
from ztunnel.proxy_header import proxy_header

pytestmark = pytest.mark.unit

IDENTITY = Identity("cluster.local", "nsa", "sa1")
NAME = "d000247370696666653a2f2f636c75737465722e6c6f63616c2f6e732f6e73612f73612f736131"


@pytest.mark.parametrize(
    ("source", "target", "golden"),
    [
        (
            ("10.77.200.9", 37167),
            ("10.77.0.2", 8080),
            "0d0a0d0a000d0a515549540a211100330a4dc8090a4d0002912f1f90" + NAME,
        ),
        (("10.77.200.9", 53599), ("10.88.1.2", 80), "0d0a0d0a000d0a515549540a211100330a4dc8090a580102d15f0050" + NAME),
        (("10.77.200.9", 1), ("fd77::9", 99), "0d0a0d0a000d0a515549540a21010027" + NAME),
        (
            ("fd77::1", 258),
            ("fd77::9", 99),
            "0d0a0d0a000d0a515549540a2121004bfd770000000000000000000000000001fd77000000000000000000000000000901020063" + NAME,
        ),
    ],
    ids=["pod", "service", "mixed families", "IPv6"],
)
def test_golden_bytes(source: tuple[str, int], target: tuple[str, int], golden: str) -> None:
    header = proxy_header((ip_address(source[0]), source[1]), (ip_address(target[0]), target[1]), IDENTITY)
    assert header.hex() == golden
