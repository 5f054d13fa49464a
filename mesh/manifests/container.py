"""One container of a pod: here an ordinary process, so its command is what counts and its image is not read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import present
from mesh.manifests.names import dns_label, mount_path, port_name, variable_name

POD_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.podIP",
    "status.podIPs",
)
"""What a variable may take from its pod (`valueFrom.fieldRef`)."""

_REFERENCE = re.compile(r"\$\$|\$\(([!-<>-~]+?)\)")
_IGNORED = (
    "livenessProbe",
    "startupProbe",
    "lifecycle",
    "envFrom",
    "volumeDevices",
    "resizePolicy",
    "restartPolicy",
    "stdin",
    "stdinOnce",
    "tty",
)
_HARMLESS = ("image", "imagePullPolicy", "resources", "terminationMessagePath", "terminationMessagePolicy")
_SECURITY_IGNORED = (
    "allowPrivilegeEscalation",
    "appArmorProfile",
    "capabilities",
    "fsGroup",
    "fsGroupChangePolicy",
    "privileged",
    "procMount",
    "readOnlyRootFilesystem",
    "runAsNonRoot",
    "seLinuxOptions",
    "seccompProfile",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "sysctls",
    "windowsOptions",
)
_MAX_ID = 2**31 - 1
_MAX_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container says it listens on."""

    port: int
    name: str = ""
    protocol: str = "TCP"

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of ports."""
        made = cls(
            cursor.number("containerPort", 1, 65535, 1, required=True),
            cursor.text("name", check=port_name),
            cursor.choice("protocol", ("TCP", "UDP", "SCTP"), "TCP"),
        )
        cursor.finish(ignored=("hostPort", "hostIP"))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(name=self.name, containerPort=self.port, protocol=self.protocol)


@dataclass(frozen=True, slots=True)
class Probe:
    """How to see that a container is ready: exactly one of http, tcp, command."""

    http_path: str = ""
    http_port: int = 0
    http_host: str = ""
    """Host header; empty: the pod's address."""
    tcp_port: int = 0
    command: tuple[str, ...] = ()
    initial_delay_s: int = 0
    period_s: int = 10
    timeout_s: int = 1
    failure_threshold: int = 3
    success_threshold: int = 1

    @classmethod
    def read(cls, cursor: Cursor, ports: Mapping[str, int]) -> "Probe | None":
        """Read a probe; `ports` are the container's, by name. None where weft has no such probe."""
        handlers = [key for key in ("httpGet", "tcpSocket", "exec", "grpc") if key in cursor]
        if len(handlers) != 1:
            cursor.refuse("", "exactly one of httpGet, tcpSocket, exec")
        http, tcp, run = cursor.child("httpGet"), cursor.child("tcpSocket"), cursor.child("exec")
        made = cls(
            http_path=http.text("path", "/") if http else "",
            http_port=_probed_port(http, ports) if http else 0,
            http_host=_http_host(http) if http else "",
            tcp_port=_probed_port(tcp, ports) if tcp else 0,
            command=run.texts("command", required="the program to run") if run else (),
            initial_delay_s=cursor.number("initialDelaySeconds", 0, _MAX_SECONDS, 0),
            period_s=cursor.number("periodSeconds", 1, _MAX_SECONDS, 10),
            timeout_s=cursor.number("timeoutSeconds", 1, _MAX_SECONDS, 1),
            failure_threshold=cursor.number("failureThreshold", 1, 1000, 3),
            success_threshold=cursor.number("successThreshold", 1, 1000, 1),
        )
        if http is not None:
            http.finish(ignored=("host",))
        if tcp is not None:
            tcp.finish(ignored=("host",))
        if run is not None:
            run.finish()
        cursor.finish(ignored=("grpc", "terminationGracePeriodSeconds"))
        return None if handlers == ["grpc"] else made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        headers = [{"name": "Host", "value": self.http_host}] if self.http_host else []
        http = present(path=self.http_path, port=self.http_port, httpHeaders=headers) if self.http_port else None
        return present(
            httpGet=http,
            tcpSocket={"port": self.tcp_port} if self.tcp_port else None,
            exec={"command": list(self.command)} if self.command else None,
            initialDelaySeconds=self.initial_delay_s,
            periodSeconds=self.period_s,
            timeoutSeconds=self.timeout_s,
            failureThreshold=self.failure_threshold,
            successThreshold=self.success_threshold,
        )


def _probed_port(handler: Cursor, ports: Mapping[str, int]) -> int:
    port = handler.port("port", names=port_name)
    if port is None:
        handler.refuse("port", "required")
    elif isinstance(port, str) and port not in ports:
        handler.refuse("port", f"no port named {port!r} in this container")
    return ports.get(port, 1) if isinstance(port, str) else port or 1


def _http_host(http: Cursor) -> str:
    if http.choice("scheme", ("HTTP", "HTTPS"), "HTTP") == "HTTPS":
        http.refuse("scheme", "probes speak HTTP only")
    host = ""
    for header in http.children("httpHeaders"):
        name, value = header.text("name", required=True), header.text("value")
        if name.lower() == "host":
            host = value
        else:
            header.warn("", "only the Host header has an effect in weft")
        header.finish()
    return host


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """Where a container sees a volume."""

    name: str
    path: str
    read_only: bool = False

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of volumeMounts."""
        made = cls(
            cursor.text("name", required=True, check=dns_label),
            cursor.text("mountPath", required=True, check=mount_path),
            cursor.flag("readOnly"),
        )
        cursor.finish(ignored=("subPath", "subPathExpr", "mountPropagation", "recursiveReadOnly"))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(name=self.name, mountPath=self.path, readOnly=self.read_only or None)


@dataclass(frozen=True, slots=True)
class Container:
    """A process of a pod."""

    name: str
    command: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    env_fields: dict[str, str] = field(default_factory=dict)
    """Variables that take a pod's field (one of POD_FIELDS)."""
    working_directory: str = ""
    ports: tuple[ContainerPort, ...] = ()
    readiness: Probe | None = None
    """None: ready as soon as it runs."""
    run_as_user: int | None = None
    run_as_group: int | None = None
    mounts: tuple[VolumeMount, ...] = ()

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of containers or initContainers."""
        ports = tuple(ContainerPort.read(entry) for entry in cursor.children("ports"))
        named = {port.name: port.port for port in ports if port.name}
        if len(named) < sum(1 for port in ports if port.name):
            cursor.refuse("ports", "two ports of one name")
        env, env_fields = _read_env(cursor)
        probe = cursor.child("readinessProbe")
        user, group = read_security(cursor)
        made = cls(
            name=cursor.text("name", required=True, check=dns_label),
            command=cursor.texts("command", required="images are not run here, so say which program is"),
            args=cursor.texts("args"),
            env=env,
            env_fields=env_fields,
            working_directory=cursor.text("workingDir"),
            ports=ports,
            readiness=Probe.read(probe, named) if probe else None,
            run_as_user=user,
            run_as_group=group,
            mounts=tuple(VolumeMount.read(entry) for entry in cursor.children("volumeMounts")),
        )
        cursor.finish(ignored=_IGNORED, harmless=_HARMLESS)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in self.env.items()]
        env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in self.env_fields.items()]
        return present(
            name=self.name,
            command=list(self.command),
            args=list(self.args),
            env=env,
            workingDir=self.working_directory,
            ports=[port.to_dict() for port in self.ports],
            readinessProbe=self.readiness.to_dict() if self.readiness else None,
            securityContext=present(runAsUser=self.run_as_user, runAsGroup=self.run_as_group),
            volumeMounts=[mount.to_dict() for mount in self.mounts],
        )

    def environment(self, pod_fields: Mapping[str, str]) -> dict[str, str]:
        """Make its variables, from the pod's fields (by the paths in POD_FIELDS); `$(NAME)` refers to earlier ones."""
        made = {name: pod_fields.get(path, "") for name, path in self.env_fields.items()}
        for name, value in self.env.items():
            made[name] = expand(value, made)
        return made

    def argv(self, environment: Mapping[str, str]) -> list[str]:
        """Make its command line, with `$(NAME)` of its variables filled in."""
        return [expand(text, environment) for text in (*self.command, *self.args)]


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Fill in `$(NAME)` as a kubelet does: an unknown name stays as it is, `$$` is a dollar sign."""
    return _REFERENCE.sub(lambda found: environment.get(found[1], found[0]) if found[1] else "$", text)


def read_security(cursor: Cursor) -> tuple[int | None, int | None]:
    """Read securityContext's runAsUser and runAsGroup."""
    context = cursor.child("securityContext")
    if context is None:
        return None, None
    ids = context.optional_number("runAsUser", 0, _MAX_ID), context.optional_number("runAsGroup", 0, _MAX_ID)
    context.finish(ignored=_SECURITY_IGNORED)
    return ids


def _read_env(cursor: Cursor) -> tuple[dict[str, str], dict[str, str]]:
    env: dict[str, str] = {}
    fields: dict[str, str] = {}
    for entry in cursor.children("env"):
        name = entry.text("name", required=True, check=variable_name)
        source = entry.child("valueFrom")
        value = entry.text("value")
        if source is None:
            env[name] = value
        elif (reference := source.child("fieldRef")) is not None:
            fields[name] = reference.choice("fieldPath", POD_FIELDS, POD_FIELDS[0])
            reference.finish(harmless=("apiVersion",))
        if source is not None:
            source.finish(ignored=("resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"))
        entry.finish()
    return env, fields
