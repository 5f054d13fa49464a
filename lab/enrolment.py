"""How the lab tells an agent of pods, as a container runtime's network plugin does: HTTP on agent.sock."""

import base64
import json
from pathlib import Path
from typing import Any

from lab.layout import UPLINK, Layout, netns_path
from lab.wish import PodWish
from wire.http_client import request
from wire.http_messages import HttpError

_TIMEOUT_S = 15.0
"""An agent that has just started may be compiling its programs; istio-cni gives up after 5 s and is asked again."""


class EnrolmentError(Exception):
    """The agent did not do it; the message says why."""


def add_request(layout: Layout, wish: PodWish) -> dict[str, Any]:
    """The body of `/cmdadd`: istio-cni's fields and weft's five."""
    return {
        "Netns": str(netns_path(layout.pod_netns(wish.node, wish.key))),
        "PodName": wish.pod.name,
        "PodNamespace": wish.pod.namespace,
        "IPs": [
            {
                "Interface": UPLINK,
                "Address": {"IP": str(address.ip), "Mask": base64.b64encode(address.netmask.packed).decode()},
                "Gateway": str(address.network[1]),
            }
            for address in sorted(wish.addresses, key=lambda one: one.version)
        ],
        "UID": wish.uid,
        "ServiceAccount": wish.pod.spec.service_account,
        "Labels": wish.pod.labels,
        "Annotations": wish.pod.metadata.annotations,
        "CgroupPath": str(layout.pod_cgroup(wish.node, wish.key)),
    }


async def enrol(layout: Layout, wish: PodWish) -> None:
    """Have the pod captured; on return the agent and the proxy have it.

    Raises: EnrolmentError.
    """
    await _post(layout.places.node(wish.node).agent_socket, "/cmdadd", add_request(layout, wish))


async def withdraw(layout: Layout, node: str, uid: str) -> None:
    """Have the pod let go; one that the agent does not know is fine.

    Raises: EnrolmentError.
    """
    await _post(layout.places.node(node).agent_socket, "/cmddel", {"UID": uid})


async def _post(socket: Path, path: str, document: dict[str, Any]) -> None:
    try:
        reply = await request(socket, "POST", path, json.dumps(document).encode(), _TIMEOUT_S)
        reply.check()
    except HttpError as error:
        raise EnrolmentError(f"the agent refuses: {error.reason}") from error
    except TimeoutError as error:
        raise EnrolmentError(f"the agent does not answer within {_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise EnrolmentError(f"no agent answers at {socket}: {error.strerror or error}") from error
