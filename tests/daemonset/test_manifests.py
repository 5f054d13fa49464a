"""The Kubernetes manifests: held against the processes' own parsers, and against themselves."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.settings import parse as parse_agent
from control.configuration import parse as parse_control
from control.service_accounts import ACCOUNT, AUDIENCE
from mesh.version import VERSION
from wire.places import Places
from ztunnel.config import read_config

pytestmark = pytest.mark.unit
_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "daemonset" / "manifests"
_VERSION = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]


def _objects() -> list[dict[str, Any]]:
    return [one for path in sorted(_FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def _pods() -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in _objects() if one["kind"] in ("DaemonSet", "Deployment")]


def _containers() -> dict[str, dict[str, Any]]:
    return {container["name"]: container for pod in _pods() for container in pod["containers"]}


def _environment(container: dict[str, Any]) -> dict[str, str]:
    """What Kubernetes would set on node-1; later variables may name earlier ones."""
    fields = {
        "spec.nodeName": "node-1",
        "metadata.name": "pod-1",
        "metadata.namespace": "weft-system",
        "status.podIP": "192.0.2.1",
    }
    made: dict[str, str] = {}
    for one in container.get("env", []):
        made[one["name"]] = (
            fields[one["valueFrom"]["fieldRef"]["fieldPath"]] if "valueFrom" in one else _expanded(one["value"], made)
        )
    return made


def _expanded(text: str, environment: dict[str, str]) -> str:
    """`$(NAME)` as Kubernetes replaces it; unknown names stay, and would be passed on as they are."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def _arguments(name: str) -> list[str]:
    container = _containers()[name]
    return [_expanded(argument, _environment(container)) for argument in container["args"]]


def test_controls_flags() -> None:
    places = Places(Path("/run/weft"), Path("/var/lib/weft"), "weft")
    configuration = parse_control(_arguments("weft-control"), places)
    assert [listener.port for listener in configuration.listeners] == [15012]
    assert configuration.manifests == Path("/var/lib/weft/control/manifests")
    assert configuration.account_keys == Path("/etc/weft/jwks.json")
    assert _containers()["weft-control"]["command"][-1] == "control"


def test_the_proxys_flags_and_environment() -> None:
    environment = _environment(_containers()["weft-ztunnel"])
    config = read_config(_arguments("weft-ztunnel"), environment | {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, cores=2)
    assert config.node == "node-1" and config.pod_name == "pod-1"
    for endpoint in (config.xds, config.ca):
        assert endpoint is not None and endpoint.address == "weft-control:15012"
        assert (endpoint.root, endpoint.token) == (Path("/etc/weft/root-cert.pem"), Path("/etc/weft/token"))
    assert config.zds_socket == Path("/run/weft/nodes/node-1/ztunnel.sock")
    probe = _containers()["weft-ztunnel"]["readinessProbe"]["httpGet"]
    assert (probe["port"], probe["path"]) == (config.readiness_port, "/healthz/ready")
    startup = _containers()["weft-ztunnel"]["startupProbe"]["exec"]["command"]
    assert startup[:2] == ["/bin/sh", "-c"] and f"'sport = :{config.readiness_port}'" in startup[2]


def test_a_new_proxy_starts_beside_the_old_one() -> None:
    (proxy,) = [one for one in _objects() if one["kind"] == "DaemonSet" and one["metadata"]["name"] == "weft-ztunnel"]
    assert proxy["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    # A port that is declared in the node's network is taken for the scheduler: the second proxy would wait for the first.
    assert proxy["spec"]["template"]["spec"]["hostNetwork"] and "ports" not in _containers()["weft-ztunnel"]


def test_no_process_counts_as_rolled_out_before_it_serves() -> None:
    agent = _containers()["weft-agent"]
    assert agent["readinessProbe"]["tcpSocket"]["port"] == parse_agent(_arguments("weft-agent")).metrics_port
    assert all("readinessProbe" in container for container in _containers().values())


def test_the_image_is_this_versions_everywhere() -> None:
    assert VERSION == _VERSION
    assert {container["image"] for container in _containers().values()} == {f"weft:{_VERSION}"}
    (kustomization,) = [one for one in _objects() if one["kind"] == "Kustomization"]
    assert kustomization["images"] == [{"name": "weft", "newTag": _VERSION}]
    assert sorted(kustomization["resources"]) == sorted(
        path.name for path in _FOLDER.glob("*.yaml") if "kustom" not in path.name
    )


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    for pod in _pods():
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert volumes == {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}


def test_accounts_exist_and_nobody_gets_a_token_of_kubernetes() -> None:
    accounts = {one["metadata"]["name"] for one in _objects() if one["kind"] == "ServiceAccount"}
    for pod in _pods():
        assert pod["serviceAccountName"] in accounts and pod["automountServiceAccountToken"] is False


def test_a_node_holds_its_own_pods_token_and_no_secret_that_others_have() -> None:
    node_pods = [pod for pod in _pods() if pod.get("hostNetwork")]
    assert len(node_pods) == 2 and not [one for pod in _pods() for one in pod["volumes"] if "secret" in one]
    for pod in node_pods:
        assert f"weft-system/{pod['serviceAccountName']}" == ACCOUNT
        (credentials,) = [volume["projected"] for volume in pod["volumes"] if "projected" in volume]
        (token,) = [one["serviceAccountToken"] for one in credentials["sources"] if "serviceAccountToken" in one]
        assert (token["audience"], token["path"], token["expirationSeconds"]) == (AUDIENCE, "token", 3600)


def test_least_privilege() -> None:
    containers = _containers()
    privileged = {name for name, container in containers.items() if container["securityContext"].get("privileged")}
    assert privileged == {"weft-agent"}
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers.values())
    assert containers["weft-control"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert set(containers["weft-ztunnel"]["securityContext"]["capabilities"]["add"]) == {"NET_ADMIN", "NET_RAW", "SYS_ADMIN"}
    mounts = {mount["mountPath"] for mount in containers["weft-ztunnel"]["volumeMounts"]}
    assert not {"/sys/fs/bpf", "/sys/fs/cgroup"} & mounts


def test_everything_is_in_one_namespace() -> None:
    for one in _objects():
        if one["kind"] not in ("Namespace", "Kustomization"):
            assert one["metadata"]["namespace"] == "weft-system", one["kind"]


def test_the_agents_flags() -> None:
    settings = parse_agent(_arguments("weft-agent"))
    assert settings.node == "node-1"
    assert (settings.cgroup, settings.bpffs) == (Path("/sys/fs/cgroup"), Path("/sys/fs/bpf/weft"))
    variables = {one["name"] for one in _containers()["weft-agent"]["env"]}
    assert variables == {
        "NODE_NAME",
        *(f"WEFT_EXCLUDE_{name}" for name in ("OUTBOUND_PORTS", "OUTBOUND_RANGES", "INBOUND_PORTS")),
    }
    mounts = {mount["mountPath"] for mount in _containers()["weft-agent"]["volumeMounts"]}
    for path in (settings.cgroup, settings.bpffs, settings.root, settings.token):
        assert any(str(path).startswith(mount) for mount in mounts), path
