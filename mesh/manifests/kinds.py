"""Which kinds there are: those that weft reads, and those that it knows of and leaves alone."""

from mesh.manifests.authorization_policy import AuthorizationPolicy
from mesh.manifests.cluster import Namespace, Node, ServiceAccount
from mesh.manifests.deployment import Deployment
from mesh.manifests.endpoint_slice import EndpointSlice
from mesh.manifests.gateway import Gateway
from mesh.manifests.metadata import Object
from mesh.manifests.peer_authentication import PeerAuthentication
from mesh.manifests.pod import Pod
from mesh.manifests.service import Service
from mesh.manifests.service_entry import ServiceEntry
from mesh.manifests.workload_entry import WorkloadEntry

_READ: tuple[type[Object], ...] = (
    Node,
    Namespace,
    ServiceAccount,
    Pod,
    Deployment,
    WorkloadEntry,
    Service,
    EndpointSlice,
    ServiceEntry,
    Gateway,
    AuthorizationPolicy,
    PeerAuthentication,
)
KINDS: dict[str, type[Object]] = {kind.KIND: kind for kind in _READ}
"""What weft reads, by kind; in an order in which later kinds refer to earlier ones."""

_SKIPPED = {
    "": "Binding ComponentStatus ConfigMap Endpoints Event LimitRange PersistentVolume PersistentVolumeClaim PodTemplate "
    "ReplicationController ResourceQuota Secret",
    "admissionregistration.k8s.io": "MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration "
    "ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration",
    "apiextensions.k8s.io": "CustomResourceDefinition",
    "apiregistration.k8s.io": "APIService",
    "apps": "ControllerRevision DaemonSet ReplicaSet StatefulSet",
    "authentication.k8s.io": "SelfSubjectReview TokenRequest TokenReview",
    "authorization.k8s.io": "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview",
    "autoscaling": "HorizontalPodAutoscaler Scale",
    "batch": "CronJob Job",
    "certificates.k8s.io": "CertificateSigningRequest ClusterTrustBundle PodCertificateRequest",
    "coordination.k8s.io": "Lease LeaseCandidate",
    "events.k8s.io": "Event",
    "extensions.istio.io": "WasmPlugin",
    "flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
    "gateway.networking.k8s.io": "BackendTLSPolicy GRPCRoute GatewayClass HTTPRoute ListenerSet ReferenceGrant "
    "TCPRoute TLSRoute UDPRoute",
    "install.istio.io": "IstioOperator",
    "networking.istio.io": "DestinationRule EnvoyFilter Gateway ProxyConfig Sidecar VirtualService WorkloadGroup",
    "networking.k8s.io": "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
    "node.k8s.io": "RuntimeClass",
    "policy": "Eviction PodDisruptionBudget PodSecurityPolicy",
    "rbac.authorization.k8s.io": "ClusterRole ClusterRoleBinding Role RoleBinding",
    "resource.k8s.io": "DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice",
    "scheduling.k8s.io": "PriorityClass",
    "security.istio.io": "RequestAuthentication",
    "storage.k8s.io": "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass",
    "telemetry.istio.io": "Telemetry",
}


def group_of(api_version: str) -> str:
    """The API group: empty for the core one."""
    group, slash, _ = api_version.rpartition("/")
    return group if slash else ""


def is_skipped(api_version: str, kind: str) -> bool:
    """Whether Kubernetes, Istio or the Gateway API know this kind and weft has no use for it."""
    return kind in _SKIPPED.get(group_of(api_version), "").split()
