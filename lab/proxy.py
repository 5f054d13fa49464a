"""A node's proxy: weft's own, or another implementation that the Node's annotation names, so that the two can be compared.

    metadata: {name: b, annotations: {lab.weft/ztunnel: /opt/istio/ztunnel proxy ztunnel}}

Such a program is told by environment what Istio's chart tells its ztunnel: the agent's ZDS socket, control for xDS and
certificates, the node's credential. `env NAME=VALUE ... PROGRAM` as the command sets more. Pure.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from mesh.manifests import Node
from wire.places import NodePlaces

ANNOTATION = "lab.weft/ztunnel"
ROOT_NAMESPACE = "istio-system"
_GRACE_S = 30


def foreign_command(node: Node) -> tuple[str, ...]:
    """What is to run in place of weft's own proxy; empty: nothing. Raises: ValueError when it is no command."""
    text = node.metadata.annotations.get(ANNOTATION, "")
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"annotation {ANNOTATION}: {error}: quote it as for a shell") from error
    if text and not command:
        raise ValueError(f"annotation {ANNOTATION} is empty: name a program, or leave the annotation out")
    return command


def with_dns(inherited: Mapping[str, str]) -> dict[str, str]:
    """The machine's nameservers cannot be reached from a lab's pods: there are none, unless WEFT_RESOLV_CONF names others."""
    return {"WEFT_RESOLV_CONF": "/dev/null", **inherited}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a proxy has to find on its node."""

    places: NodePlaces
    control: str
    """HOST:PORT of xDS and CA."""
    address: str
    """The node's own."""

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The names that Istio's ztunnel reads, beside what every program of the lab inherits."""
        control, root = f"https://{self.control}", str(self.places.root)
        return {
            **with_dns(inherited),
            "INPOD_ENABLED": "true",
            "PROXY_MODE": "shared",
            "INPOD_UDS": str(self.places.zds_socket),
            "XDS_ADDRESS": control,
            "CA_ADDRESS": control,
            "XDS_ROOT_CA": root,
            "CA_ROOT_CA": root,
            "AUTH_TOKEN": str(self.places.token),
            "NODE_NAME": self.places.name,
            "CLUSTER_ID": "Kubernetes",
            "ISTIO_META_CLUSTER_ID": "Kubernetes",
            "POD_NAME": f"ztunnel-{self.places.name}",
            "POD_NAMESPACE": ROOT_NAMESPACE,
            "INSTANCE_IP": self.address,
            "TERMINATION_GRACE_PERIOD_SECONDS": str(_GRACE_S),
        }
