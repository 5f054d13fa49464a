"""Nodes, namespaces, service accounts."""

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Check, Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import dns_label, network
from mesh.workload import Network


@dataclass(frozen=True, slots=True)
class Node(Object):
    """A machine, and the addresses that its pods get."""

    KIND: ClassVar[str] = "Node"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("v1",)
    NAMESPACED: ClassVar[bool] = False

    pod_cidrs: tuple[Network, ...] = ()
    """At most one of each address family; may be empty."""
    unschedulable: bool = False

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec.podCIDRs, or the older spec.podCIDR."""
        spec = cursor.child("spec")
        if spec is None:
            return cls(metadata)
        key = "podCIDRs" if "podCIDRs" in spec else "podCIDR"
        texts = spec.texts(key, network) if key == "podCIDRs" else (spec.text(key, check=network),)
        cidrs = tuple(ip_network(text) for text in texts if text)
        if len({cidr.version for cidr in cidrs}) < len(cidrs):
            spec.refuse(key, "at most one CIDR of each address family")
        unschedulable = spec.flag("unschedulable")
        spec.finish(ignored=("taints", "configSource"), harmless=("podCIDR", "providerID", "externalID"))
        return cls(metadata, cidrs, unschedulable)

    def body(self) -> dict[str, Any]:
        """Write spec."""
        spec = present(podCIDRs=[str(cidr) for cidr in self.pod_cidrs], unschedulable=self.unschedulable or None)
        return {"spec": spec} if spec else {}


@dataclass(frozen=True, slots=True)
class Namespace(Object):
    """A namespace; its labels decide about enrolment."""

    KIND: ClassVar[str] = "Namespace"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("v1",)
    NAMESPACED: ClassVar[bool] = False
    NAME: ClassVar[Check] = dns_label

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Nothing but metadata counts."""
        spec = cursor.child("spec")
        if spec is not None:
            spec.finish(harmless=("finalizers",))
        return cls(metadata)


@dataclass(frozen=True, slots=True)
class ServiceAccount(Object):
    """What gives a pod its identity."""

    KIND: ClassVar[str] = "ServiceAccount"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("v1",)

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Nothing but metadata counts."""
        for key in ("secrets", "imagePullSecrets"):
            cursor.children(key)
        cursor.flag("automountServiceAccountToken")
        return cls(metadata)
