"""The config dump: everything that this proxy knows, in the JSON form that istioctl reads. No key, no token."""

import base64
from collections.abc import Iterable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import version
from mesh.dump import dump_endpoints, dump_policy, dump_service, dump_workload
from mesh.identity import Identity
from wire.xds import XdsClient
from ztunnel.access_log import endpoint_text
from ztunnel.certificates import Certificate
from ztunnel.connection_record import ConnectionRecord
from ztunnel.mesh_view import MeshView
from ztunnel.zds_session import PodInfo

VERSION = f"weft-{version.VERSION}"
JSON = dict[str, Any]


def dump_mesh(view: MeshView) -> JSON:
    """Workloads, services and policies."""
    inventory = view.inventory
    services = sorted(inventory.services(), key=lambda service: service.key)
    return {
        "workloads": [dump_workload(one) for one in sorted(inventory.workloads(), key=lambda workload: workload.uid)],
        "services": [dump_service(service, inventory.endpoints(service.key)) for service in services],
        "policies": [dump_policy(policy) for policy in sorted(view.policies.policies(), key=lambda policy: policy.key)],
        "stagedServices": {key: dump_endpoints(endpoints) for key, endpoints in inventory.staged().items()},
        "staticConfig": _dump_local(view),
    }


def _dump_local(view: MeshView) -> JSON:
    local = view.local
    return {
        "workloads": [dump_workload(one) | {"services": one.services} for one in local.workloads] if local else [],
        "policies": [dump_policy(policy) for policy in local.policies] if local else [],
        "services": [dump_service(service, ()) for service in local.services] if local else [],
    }


def dump_certificates(states: Iterable[tuple[Identity, str, Certificate | None]]) -> list[JSON]:
    """Certificates with their chains; never keys."""
    return [
        {
            "identity": str(identity),
            "state": state,
            "certChain": _chain(certificate.chain_pem) if certificate else [],
            "rootCerts": _chain(certificate.roots_pem) if certificate else [],
        }
        | _federated(certificate)
        for identity, state, certificate in states
    ]


def _federated(certificate: Certificate | None) -> JSON:
    """Roots of other trust domains, which Istio's ztunnel has not."""
    found = certificate.federated if certificate else ()
    return {"federatedRootCerts": {domain: _chain(pem) if pem else [] for domain, pem in found}} if found else {}


def _chain(pem: bytes) -> list[JSON]:
    return [
        {
            "pem": base64.b64encode(one.public_bytes(Encoding.PEM)).decode(),
            "serialNumber": str(one.serial_number),
            "validFrom": f"{one.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
            "expirationTime": f"{one.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        }
        for one in x509.load_pem_x509_certificates(pem)
    ]


def dump_connection(record: ConnectionRecord) -> JSON:
    """An open connection as the config dump shows it: inbound, the original destination is the service that was named."""
    dialled = endpoint_text(*record.destination)
    if record.direction == "outbound":
        original: str | None = endpoint_text(*(record.original_destination or record.destination))
    else:
        original = record.forwarded_host or None
        dialled = record.hbone_destination or dialled
    return {"src": endpoint_text(*record.source), "originalDst": original, "actualDst": dialled, "protocol": record.protocol}


def dump_pods(served: Iterable[PodInfo], pending: Iterable[PodInfo], records: Iterable[ConnectionRecord]) -> JSON:
    """Pods by uid, with their state and open connections."""
    pods: JSON = {}
    for state, infos in (("Up", served), ("Pending", pending)):
        for pod in infos:
            info = {"name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account}
            pods[pod.uid] = {"state": state, "connections": {"inbound": [], "outbound": []}, "info": info}
    for record in records:
        if record.pod_uid in pods:
            pods[record.pod_uid]["connections"][record.direction].append(dump_connection(record))
    return pods


def dump_connection_fully(worker: int, record: ConnectionRecord) -> JSON:
    """An open connection with all that is known of it."""
    return {
        "worker": worker,
        "number": record.number,
        "podUid": record.pod_uid,
        "direction": record.direction,
        **dump_connection(record),
        "hboneDst": record.hbone_destination,
        "hop": record.hop,
        "sourceWorkload": record.source_workload,
        "sourceIdentity": str(record.source_identity or ""),
        "destinationWorkload": record.destination_workload,
        "destinationIdentity": str(record.destination_identity or ""),
        "destinationService": record.destination_service,
        "openedUnixNs": record.opened_unix_ns,
        "bytesSent": record.bytes_sent,
        "bytesReceived": record.bytes_received,
        "policy": record.policy,
    }


def dump_control(xds: XdsClient | None) -> JSON | None:
    """The control plane's stream; None where there is none by wish."""
    if xds is None:
        return None
    return {"address": xds.address, "connected": xds.status.connected, "error": xds.status.last_error}


def dump_version(istio: str) -> JSON:
    """What runs here, under istioctl's keys, and for which Istio (empty: nobody said)."""
    unknown = dict.fromkeys(("gitRevision", "rustVersion", "buildProfile", "buildStatus"), "unknown")
    return {"version": VERSION, **unknown, "istioVersion": istio or "unknown", "cryptoProvider": "openssl"}
