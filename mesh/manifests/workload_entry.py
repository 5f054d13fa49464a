"""WorkloadEntry: an endpoint that is no pod, such as a virtual machine; its spec is also a part of ServiceEntries."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import address, dns_label, dns_subdomain, label_key, label_value
from mesh.workload import Address, Locality

_MAX_WEIGHT = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something is, and by which ports it serves."""

    address: str = ""
    """An IP address or a hostname; empty: whoever is behind the gateway of `network`."""
    ports: dict[str, int] = field(default_factory=dict)
    """Where its own ports differ from those of a service, by their names there."""
    labels: dict[str, str] = field(default_factory=dict)
    network: str = ""
    locality: str = ""
    """REGION/ZONE/SUBZONE, or less of it."""
    weight: int = 0
    """Its share among its like; 0: not said, which counts as 1."""
    service_account: str = ""

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one mapping."""
        mistakes = cursor.mistakes
        made = cls(
            cursor.text("address", check=_reachable),
            cursor.number_map("ports", dns_label, 1, 65535),
            cursor.text_map("labels", label_key, label_value),
            cursor.text("network", check=label_value),
            cursor.text("locality", check=_place),
            cursor.number("weight", 0, _MAX_WEIGHT),
            cursor.text("serviceAccount", check=dns_subdomain),
        )
        if not made.address and not made.network and cursor.mistakes == mistakes:
            cursor.refuse("address", "required, where no network says behind which gateway it is")
        cursor.finish()
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(
            address=self.address,
            ports=self.ports,
            labels=self.labels,
            network=self.network,
            locality=self.locality,
            weight=self.weight or None,
            serviceAccount=self.service_account,
        )

    @property
    def ip(self) -> Address | None:
        """Its address; None where that is a hostname, or not said."""
        try:
            return ip_address(self.address)
        except ValueError:
            return None

    @property
    def hostname(self) -> str:
        """Its name, where it has no address."""
        return self.address if self.ip is None else ""

    @property
    def place(self) -> Locality:
        """Where it is, read."""
        return Locality(*self.locality.split("/")) if self.locality else Locality()


@dataclass(frozen=True, slots=True)
class WorkloadEntry(Object):
    """An endpoint by itself, which services select by its labels."""

    KIND: ClassVar[str] = "WorkloadEntry"
    API_VERSIONS: ClassVar[tuple[str, ...]] = (
        "networking.istio.io/v1",
        "networking.istio.io/v1beta1",
        "networking.istio.io/v1alpha3",
    )

    endpoint: Endpoint = field(default_factory=Endpoint)

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec."""
        spec = cursor.child("spec", required=True)
        return cls(metadata, Endpoint.read(spec)) if spec is not None else cls(metadata)

    def body(self) -> dict[str, Any]:
        """Write spec."""
        return {"spec": self.endpoint.to_dict()}

    @property
    def labels(self) -> dict[str, str]:
        """Those of its metadata, and over them those that its spec gives the endpoint."""
        return self.metadata.labels | self.endpoint.labels


def _reachable(text: str) -> None:
    if text.startswith("unix:"):
        raise ValueError(f"{text!r}: a socket in a file system is reached by nobody else: write an address or a hostname")
    try:
        ip_address(text)
    except ValueError:
        dns_subdomain(text)
    else:
        address(text)


def _place(text: str) -> None:
    parts = text.split("/")
    if len(parts) > 3 or not all(parts):
        raise ValueError(f"{text!r}: write REGION, REGION/ZONE or REGION/ZONE/SUBZONE")
