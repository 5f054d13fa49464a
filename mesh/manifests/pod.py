"""Pods."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from mesh.manifests.container import Container, read_security
from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import dns_label, dns_subdomain, label_key, label_value

RESTART_POLICIES = ("Always", "OnFailure", "Never")

_IGNORED = (
    "activeDeadlineSeconds",
    "affinity",
    "dnsConfig",
    "dnsPolicy",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "runtimeClassName",
    "schedulingGates",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "tolerations",
    "topologySpreadConstraints",
)
_HARMLESS = (
    "automountServiceAccountToken",
    "enableServiceLinks",
    "hostname",
    "imagePullSecrets",
    "os",
    "schedulerName",
    "serviceAccount",
    "subdomain",
)
_OTHER_VOLUMES = (
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "ephemeral",
    "fc",
    "flexVolume",
    "gcePersistentDisk",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "projected",
    "rbd",
    "secret",
    "vsphereVolume",
)


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a pod runs, where and as whom."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    """Run one after the other, to their end, before the containers."""
    volumes: tuple[str, ...] = ()
    """Names of emptyDir volumes; every mount names one of them."""
    service_account: str = "default"
    node_name: str = ""
    node_selector: dict[str, str] = field(default_factory=dict)
    host_network: bool = False
    restart_policy: str = "Always"
    run_as_user: int | None = None
    run_as_group: int | None = None
    grace_period_s: int = 30
    """From SIGTERM to SIGKILL."""

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read a pod's spec."""
        user, group = read_security(cursor)
        volumes, others = _read_volumes(cursor)
        init = _read_containers(cursor, "initContainers", volumes, others)
        containers = _read_containers(cursor, "containers", volumes, others)
        if not containers:
            cursor.refuse("containers", "at least one container")
        names = [container.name for container in (*init, *containers)]
        if len(set(names)) < len(names):
            cursor.refuse("containers", "two containers of one name")
        made = cls(
            containers=containers,
            init_containers=init,
            volumes=volumes,
            service_account=cursor.text("serviceAccountName", cursor.text("serviceAccount", "default"), check=dns_subdomain),
            node_name=cursor.text("nodeName", check=dns_subdomain),
            node_selector=cursor.text_map("nodeSelector", label_key, label_value),
            host_network=cursor.flag("hostNetwork"),
            restart_policy=cursor.choice("restartPolicy", RESTART_POLICIES, "Always"),
            run_as_user=user,
            run_as_group=group,
            grace_period_s=cursor.number("terminationGracePeriodSeconds", 0, 86_400, 30),
        )
        cursor.finish(ignored=_IGNORED, harmless=_HARMLESS)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(
            containers=[container.to_dict() for container in self.containers],
            initContainers=[container.to_dict() for container in self.init_containers],
            volumes=[{"name": name, "emptyDir": {}} for name in self.volumes],
            serviceAccountName=self.service_account,
            nodeName=self.node_name,
            nodeSelector=self.node_selector,
            hostNetwork=self.host_network or None,
            restartPolicy=self.restart_policy,
            securityContext=present(runAsUser=self.run_as_user, runAsGroup=self.run_as_group),
            terminationGracePeriodSeconds=self.grace_period_s,
        )

    def port_named(self, name: str, protocol: str = "TCP") -> int | None:
        """Find a named port: what a service's targetPort means for this pod."""
        for container in self.containers:
            for port in container.ports:
                if port.name == name and port.protocol == protocol:
                    return port.port
        return None


def _read_volumes(cursor: Cursor) -> tuple[tuple[str, ...], set[str]]:
    """The names of emptyDir volumes, and of those of kinds that weft does not have."""
    volumes: dict[str, None] = {}
    others: set[str] = set()
    for entry in cursor.children("volumes"):
        name = entry.text("name", required=True, check=dns_label)
        if name in volumes or name in others:
            entry.refuse("name", f"two volumes named {name!r}")
        directory = entry.child("emptyDir")
        if directory is not None:
            directory.finish(harmless=("medium", "sizeLimit"))
            volumes[name] = None
        else:
            others.add(name)
        entry.finish(ignored=_OTHER_VOLUMES)
    return tuple(volumes), others


def _read_containers(cursor: Cursor, key: str, mounted: Iterable[str], others: set[str]) -> tuple[Container, ...]:
    containers, volumes = [], frozenset(mounted)
    for entry in cursor.children(key):
        container = Container.read(entry)
        for index, mount in enumerate(container.mounts):
            if mount.name in others:
                entry.warn(f"volumeMounts[{index}]", f"volume {mount.name!r} is of a kind that weft does not have: not mounted")
            elif mount.name not in volumes:
                entry.refuse(f"volumeMounts[{index}]", f"no volume named {mount.name!r} in this pod")
        kept = tuple(mount for mount in container.mounts if mount.name in volumes)
        containers.append(replace(container, mounts=kept))
    return tuple(containers)


@dataclass(frozen=True, slots=True)
class Pod(Object):
    """A pod: one that a person wrote, or one of a deployment's."""

    KIND: ClassVar[str] = "Pod"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("v1",)

    spec: PodSpec = field(default_factory=PodSpec)

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec."""
        spec = cursor.child("spec", required=True)
        if spec is None:
            return cls(metadata)
        return cls(metadata, PodSpec.read(spec))

    def body(self) -> dict[str, Any]:
        """Write spec."""
        return {"spec": self.spec.to_dict()}

    @property
    def deployment(self) -> str:
        """The name of the deployment it belongs to; empty for a pod of its own."""
        kind, _, name = self.metadata.owner.partition("/")
        return name if kind == "Deployment" else ""

    @property
    def workload_name(self) -> str:
        """What its replicas have in common: the deployment's name, else its own."""
        return self.deployment or self.name
