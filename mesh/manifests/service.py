"""Services."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from mesh.manifests.cursor import Check, Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import address, dns_label, label_key, label_value, port_name, service_name
from mesh.workload import Address

IPFamily = Literal["IPv4", "IPv6"]
_FAMILIES: tuple[IPFamily, ...] = ("IPv4", "IPv6")
_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
_IGNORED = (
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "sessionAffinityConfig",
)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service, and which port of its pods it leads to."""

    port: int
    target: int | str
    """A number, or the name of a container's port."""
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of ports."""
        port = cursor.number("port", 1, 65535, 1, required=True)
        made = cls(
            port,
            cursor.port("targetPort", names=port_name) or port,
            cursor.text("name", check=dns_label),
            cursor.choice("protocol", ("TCP", "UDP", "SCTP"), "TCP"),
            cursor.text("appProtocol"),
        )
        cursor.finish(harmless=("nodePort",))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(
            name=self.name, port=self.port, targetPort=self.target, protocol=self.protocol, appProtocol=self.app_protocol
        )


@dataclass(frozen=True, slots=True)
class Service(Object):
    """A name, and usually an address, for a set of pods."""

    KIND: ClassVar[str] = "Service"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("v1",)
    NAME: ClassVar[Check] = service_name

    type: str = "ClusterIP"
    """ClusterIP, NodePort or LoadBalancer: all the same here; or ExternalName, which `parse` skips with a warning."""
    cluster_ips: tuple[Address, ...] = ()
    """What its author fixed; empty: to be allocated, unless headless."""
    headless: bool = False
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = field(default_factory=dict)
    """Empty: selects nothing."""
    ip_families: tuple[IPFamily, ...] = ()
    """Empty: whatever the cluster has."""
    ip_family_policy: str = ""
    publish_not_ready: bool = False
    internal_traffic_local: bool = False
    """internalTrafficPolicy: Local."""
    traffic_distribution: str = ""
    by_client_address: bool = False
    """sessionAffinity: ClientIP. It has no time limit here: a client stays as long as its endpoint does."""

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec."""
        spec = cursor.child("spec", required=True)
        if spec is None:
            return cls(metadata)
        kind = spec.choice("type", ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"), "ClusterIP")
        spec.text("externalName")
        if kind in ("NodePort", "LoadBalancer"):
            spec.warn("type", f"{kind} is treated as ClusterIP: nothing is opened to the outside")
        headless, addresses = _read_addresses(spec)
        families = spec.texts("ipFamilies")
        if not set(families) <= set(_FAMILIES) or len(set(families)) < len(families):
            spec.refuse("ipFamilies", f"{', '.join(families)}: IPv4 and IPv6, each at most once")
        made = cls(
            metadata,
            type=kind,
            cluster_ips=addresses,
            headless=headless,
            ports=_read_ports(spec, needed=kind != "ExternalName" and not headless),
            selector=spec.text_map("selector", label_key, label_value),
            ip_families=tuple(known for family in families for known in _FAMILIES if known == family),
            ip_family_policy=spec.choice("ipFamilyPolicy", ("", *_POLICIES), ""),
            publish_not_ready=spec.flag("publishNotReadyAddresses"),
            internal_traffic_local=spec.choice("internalTrafficPolicy", ("Cluster", "Local"), "Cluster") == "Local",
            traffic_distribution=spec.text("trafficDistribution"),
            by_client_address=spec.choice("sessionAffinity", ("None", "ClientIP"), "None") == "ClientIP",
        )
        spec.finish(ignored=_IGNORED)
        return made

    def body(self) -> dict[str, Any]:
        """Write spec."""
        addresses = ["None"] if self.headless else [str(one) for one in self.cluster_ips]
        return {
            "spec": present(
                type=self.type,
                clusterIP=addresses[0] if addresses else "",
                clusterIPs=addresses,
                ports=[port.to_dict() for port in self.ports],
                selector=self.selector,
                ipFamilies=list(self.ip_families),
                ipFamilyPolicy=self.ip_family_policy,
                publishNotReadyAddresses=self.publish_not_ready or None,
                internalTrafficPolicy="Local" if self.internal_traffic_local else "",
                trafficDistribution=self.traffic_distribution,
                sessionAffinity="ClientIP" if self.by_client_address else "",
            )
        }


def _cluster_ip(text: str) -> None:
    if text != "None":
        address(text)


def _read_addresses(spec: Cursor) -> tuple[bool, tuple[Address, ...]]:
    """Whether the service is headless, and which addresses it asks for."""
    one, several = spec.text("clusterIP", check=_cluster_ip), spec.texts("clusterIPs", _cluster_ip)
    if one and several and several[0] != one:
        spec.refuse("clusterIPs", f"must begin with clusterIP, {one}")
    texts = several or ((one,) if one else ())
    if "None" in texts:
        if len(texts) > 1:
            spec.refuse("clusterIPs", "None stands alone")
        return True, ()
    found = tuple(address(text) for text in texts)
    if len({one.version for one in found}) < len(found):
        spec.refuse("clusterIPs", "at most one of each address family")
    return False, found


def _read_ports(spec: Cursor, needed: bool) -> tuple[ServicePort, ...]:
    ports = tuple(ServicePort.read(entry) for entry in spec.children("ports"))
    if needed and not ports:
        spec.refuse("ports", "at least one port")
    names = [port.name for port in ports]
    if len(ports) > 1 and not all(names):
        spec.refuse("ports", "several ports: each needs a name")
    if len(set(filter(None, names))) < len(list(filter(None, names))):
        spec.refuse("ports", "two ports of one name")
    if len({(port.port, port.protocol) for port in ports}) < len(ports):
        spec.refuse("ports", "one port occurs twice")
    return ports
