"""More bytes of a real istiod, in a mesh of two networks: waypoints on trial, PROXY headers, gateways, both families."""

from ipaddress import ip_address

import pytest

from mesh.resources import decode_address
from mesh.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)
from mesh.workload import BalancingMode as Mode
from mesh.workload import Scope as Preference

pytestmark = pytest.mark.unit

WEIGHTED = bytes.fromhex(
    "12de010a087765696768746564120473686f701a1f77656967687465642e73686f702e7376632e636c75737465722e6c6f63616c220c0a046e6574311204"
    "0a61000a2a0808d83610d83618013a270a220a0473686f70121a7761792e73686f702e7376632e636c75737465722e6c6f63616c18a07542090a05060102"
    "03041002580160016a2b0a270a220a0473686f70121a7761792e73686f702e7376632e636c75737465722e6c6f63616c18a075104b6a2e0a2a0a250a0473"
    "686f70121d63616e6172792e73686f702e7376632e636c75737465722e6c6f63616c18a0751019"
)
SANDWICHED = bytes.fromhex(
    "0adc010a03776179120473686f701a040a0200991a10fd00001000020000000000000000009922046e65743128013a037761794a016252037761795a066c"
    "617465737460026a0377617982012a697374696f2d73797374656d2f697374696f5f636f6e7665727465645f7374617469635f73747269637492010a4b75"
    "6265726e65746573a201184b756265726e657465732f2f506f642f73686f702f776179b2012b0a1f73686f702f7761792e73686f702e7376632e636c7573"
    "7465722e6c6f63616c12080a0608a07510a075ba0105080110f075c201070a017212027a62"
)
AWAY = bytes.fromhex(
    "0ae3010a0461776179120473686f701a040a09000122046e65743228013a04617761795204617761795a066c617465737460026a0461776179700182012a"
    "697374696f2d73797374656d2f697374696f5f636f6e7665727465645f7374617469635f73747269637492010a4b756265726e657465739a0111120c0a04"
    "6e6574321204c00002c818a075a201364b756265726e657465732f6e6574776f726b696e672e697374696f2e696f2f576f726b6c6f6164456e7472792f73"
    "686f702f61776179b201210a1573686f702f617761792e6578616d706c652e636f6d12080a0608d83610d836"
)
GATEWAY = bytes.fromhex(
    "0a7c0a254e6574776f726b476174657761792f6e6574322f3139322e302e322e3230302f3135303038120c697374696f2d73797374656d1a04c00002c822"
    "046e6574323a11656173742d697374696f2d72656d6f7465a201254e6574776f726b476174657761792f6e6574322f3139322e302e322e3230302f313530"
    "3038"
)
STRICT = "istio-system/istio_converted_static_strict"


def waypoint(name: str) -> GatewayAddress:
    return GatewayAddress(NamespacedHostname("shop", f"{name}.shop.svc.cluster.local"), 15008)


def test_a_service_with_a_second_waypoint_on_trial() -> None:
    assert decode_address(WEIGHTED) == Service(
        "weighted",
        "shop",
        "weighted.shop.svc.cluster.local",
        (NetworkAddress("net1", ip_address("10.97.0.10")),),
        {7000: 7000},
        waypoint=waypoint("way"),
        weighted_waypoints=(WeightedWaypoint(waypoint("way"), 75), WeightedWaypoint(waypoint("canary"), 25)),
        preferences=(Preference.NETWORK, Preference.REGION, Preference.ZONE, Preference.SUBZONE, Preference.NODE),
        mode=Mode.FAILOVER,
        canonical=True,
    )


def test_a_waypoint_whose_program_wants_the_proxy_header() -> None:
    """It has addresses of both families."""
    assert decode_address(SANDWICHED) == Workload(
        uid="Kubernetes//Pod/shop/way",
        name="way",
        namespace="shop",
        addresses=(ip_address("10.2.0.153"), ip_address("fd00:10:2::99")),
        network="net1",
        protocol=TunnelProtocol.HBONE,
        service_account="way",
        node="b",
        canonical_name="way",
        canonical_revision="latest",
        workload_name="way",
        authorization_policies=(STRICT,),
        services={"shop/way.shop.svc.cluster.local": {15008: 15008}},
        application_tunnel=ApplicationTunnel(True, 15088),
        locality=Locality("r", "zb"),
    )


def test_a_workload_of_another_network_and_the_gateway_to_it() -> None:
    away, gateway = decode_address(AWAY), decode_address(GATEWAY)
    assert isinstance(away, Workload) and isinstance(gateway, Workload)
    assert away.network_gateway == GatewayAddress(NetworkAddress("net2", ip_address("192.0.2.200")), 15008)
    assert (away.network, away.native_tunnel, away.protocol) == ("net2", True, TunnelProtocol.HBONE)
    assert away.authorization_policies == (STRICT,)
    assert gateway == Workload(
        uid="NetworkGateway/net2/192.0.2.200/15008",
        name="NetworkGateway/net2/192.0.2.200/15008",
        namespace="istio-system",
        addresses=(ip_address("192.0.2.200"),),
        network="net2",
        service_account="east-istio-remote",
        workload_type="deployment",
    )
