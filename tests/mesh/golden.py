"""A workload and a service as a real istiod sent them, decoded."""

from ipaddress import ip_address

from mesh.workload import GatewayAddress, IPFamilies, NamespacedHostname, NetworkAddress, Service, TunnelProtocol, Workload

WAYPOINT = GatewayAddress(NamespacedHostname("amb2", "wp.amb2.svc.cluster.local"), 15008)
ANN = Workload(
    uid="Kubernetes//Pod/amb2/ann",
    name="ann",
    namespace="amb2",
    addresses=(ip_address("10.244.1.7"),),
    protocol=TunnelProtocol.HBONE,
    waypoint=WAYPOINT,
    node="n1",
    canonical_name="ann",
    canonical_revision="latest",
    workload_name="ann",
    authorization_policies=("amb2/converted_peer_authentication_portlevel2",),
    services={"amb2/s3.amb2.svc.cluster.local": {80: 8080}, "amb2/s2.amb2.svc.cluster.local": {80: 8080}},
)
S3 = Service(
    "s3",
    "amb2",
    "s3.amb2.svc.cluster.local",
    (NetworkAddress("", ip_address("10.96.74.127")),),
    {80: 8080},
    waypoint=WAYPOINT,
    ip_families=IPFamilies.IPV4_ONLY,
    canonical=True,
)
