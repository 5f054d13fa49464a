"""Kubernetes manifests: YAML files into validated, frozen objects.

document (YAML into plain values, bounded) -> cursor (checks every value, notes every mistake with its path) -> one file per
kind -> manifest_set (all files, duplicates, unknown kinds) -> relations (pods of deployments, selectors, enrolment).
"""

from mesh.manifests.authorization_policy import AuthorizationPolicy, Condition, Operation, PolicyRule, Source
from mesh.manifests.cluster import Namespace, Node, ServiceAccount
from mesh.manifests.container import POD_FIELDS, Container, ContainerPort, Probe, VolumeMount
from mesh.manifests.deployment import Deployment
from mesh.manifests.endpoint_slice import EndpointSlice
from mesh.manifests.gateway import EAST_WEST, NETWORK, REMOTE, Gateway
from mesh.manifests.kinds import KINDS
from mesh.manifests.manifest_set import ManifestSet, Origin, from_dict, parse
from mesh.manifests.metadata import Metadata, Object
from mesh.manifests.peer_authentication import Mode, PeerAuthentication
from mesh.manifests.pod import Pod, PodSpec
from mesh.manifests.problem import Problem
from mesh.manifests.relations import (
    DATAPLANE_MODE,
    USE_WAYPOINT,
    WAYPOINT_PORT,
    canary_wish,
    check_references,
    is_enrolled,
    named_networks,
    pods_of,
    second_wish,
    selects,
    service_selects,
    spoken_wish,
    waypoint_wish,
)
from mesh.manifests.service import Service, ServicePort
from mesh.manifests.service_entry import ServiceEntry
from mesh.manifests.workload_entry import Endpoint, WorkloadEntry

__all__ = [
    "DATAPLANE_MODE",
    "EAST_WEST",
    "KINDS",
    "NETWORK",
    "POD_FIELDS",
    "REMOTE",
    "USE_WAYPOINT",
    "WAYPOINT_PORT",
    "AuthorizationPolicy",
    "Condition",
    "Container",
    "ContainerPort",
    "Deployment",
    "Endpoint",
    "EndpointSlice",
    "Gateway",
    "ManifestSet",
    "Metadata",
    "Mode",
    "Namespace",
    "Node",
    "Object",
    "Operation",
    "Origin",
    "PeerAuthentication",
    "Pod",
    "PodSpec",
    "PolicyRule",
    "Probe",
    "Problem",
    "Service",
    "ServiceAccount",
    "ServiceEntry",
    "ServicePort",
    "Source",
    "VolumeMount",
    "WorkloadEntry",
    "canary_wish",
    "check_references",
    "from_dict",
    "is_enrolled",
    "named_networks",
    "parse",
    "pods_of",
    "second_wish",
    "selects",
    "service_selects",
    "spoken_wish",
    "waypoint_wish",
]
