"""What the inventory adds to a connection's record: names for logs, labels for metrics, ends for flows."""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address

from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.workload import Address, Service, Workload
from ztunnel.connection_record import ConnectionRecord


@dataclass(frozen=True, slots=True)
class Facts:
    """A record with the objects that its names stand for, as far as they are known still."""

    record: ConnectionRecord
    source: Workload | None
    destination: Workload | None
    service: Service | None
    hop: Workload | None = None
    """The waypoint or gateway that was dialled."""

    @property
    def through(self) -> str:
        """By which hop the connection went, in words; empty when it went straight."""
        record = self.record
        if not record.hop:
            return ""
        named = f"{self.hop.name}.{self.hop.namespace}" if self.hop else str(record.destination[0])
        return f"through {record.hop} {named} to {record.hbone_destination}"

    @property
    def encrypted(self) -> bool:
        """Whether mutual TLS carried it."""
        return self.record.protocol != "TCP"

    @property
    def source_principal(self) -> Identity | None:
        """Only what was proved."""
        return self.record.source_identity

    @property
    def destination_principal(self) -> Identity | None:
        """What was proved; for plain text either way, whoever the workload would be: as Istio's ztunnel has it."""
        if self.record.destination_identity is None and not self.encrypted and self.destination:
            return self.destination.identity
        return self.record.destination_identity

    @property
    def destination_end(self) -> tuple[Address, int]:
        """Address and port of the application itself, also where a tunnel's port was dialled; of the hop where there is one."""
        record = self.record
        if not record.hbone_destination or record.hop:
            return record.destination
        host, port = _tunnelled(record.hbone_destination)
        here = record.direction == "inbound"  # a waypoint is asked for addresses that are not its own
        return (record.destination[0] if here else host or record.destination[0]), port


@lru_cache(4096)
def _tunnelled(target: str) -> tuple[Address | None, int]:
    """A CONNECT target, without its host where that is a name."""
    host, _, port = target.rpartition(":")
    try:
        return ip_address(host.strip("[]")), int(port)
    except ValueError:
        return None, int(port)


def facts_of(record: ConnectionRecord, inventory: Inventory) -> Facts:
    """Look up a record's names."""
    dialled = _workload(record.destination_workload, inventory)
    return Facts(
        record,
        _workload(record.source_workload, inventory) or _source_described(record),
        _destination_described(record) or dialled,
        inventory.service(record.destination_service) if record.destination_service else None,
        dialled if record.hop else None,
    )


def _source_described(record: ConnectionRecord) -> Workload | None:
    """The source by its own words; as long as it says nothing of use, it is nobody."""
    said = record.source_described
    name = (said.service or said.workload) if said is not None else ""
    return said.as_workload(name) if said is not None and name else None


def _destination_described(record: ConnectionRecord) -> Workload | None:
    """Who answered behind a gateway, by its own words: more to the point than the gateway."""
    said = record.destination_described
    name = (said.workload or said.service) if said is not None else ""
    return said.as_workload(name) if said is not None and name else None


def _workload(uid: str, inventory: Inventory) -> Workload | None:
    if not uid:
        return None
    if known := inventory.workload(uid):
        return known
    # Gone since the connection began: a pod's uid still names it.
    cluster, found, path = uid.partition("//Pod/")
    namespace, slash, name = path.partition("/")
    return Workload(uid, name, namespace, cluster_id=cluster) if found and slash else None
