"""What container runtimes send to enrol and withdraw pods: the JSON of istio-cni's plugin, and five fields more.

`POST /cmdadd`: Netns, PodName, PodNamespace, IPs [{Interface, Address {IP, Mask}, Gateway}], and UID, ServiceAccount, Labels,
Annotations, CgroupPath. `POST /cmddel`: UID. Unknown fields are ignored, as senders grow; known ones are checked, as paths and
names from here end up in file names and system calls. An annotation that cannot be read is the pod's trouble, not a refusal of
the pod: it would stay out of the mesh, or not start at all, for a slip in a list.
"""

import json
import re
from ipaddress import ip_address
from typing import Any

from agent.pod import PodRequest
from mesh.exclusions import ANNOTATIONS, read_annotations
from mesh.workload import Address

MAX_ADDRESSES = 16
MAX_LABELS = 256
MAX_ANNOTATIONS = 4096
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9._/-]{0,317}")


def parse_add(body: bytes) -> PodRequest:
    """Read the body of a `/cmdadd`.

    Raises: ValueError that names the field and what it should be.
    """
    document = _object(body)
    exclusions, troubles = read_annotations(_annotations(document.get("Annotations")))
    return PodRequest(
        uid=_text(document, "UID", _UID),
        namespace=_text(document, "PodNamespace", _NAME),
        name=_text(document, "PodName", _NAME),
        service_account=_text(document, "ServiceAccount", _NAME, "default"),
        netns=_path(document, "Netns", required=True),
        addresses=_addresses(document.get("IPs")),
        labels=_labels(document.get("Labels")),
        cgroup=_path(document, "CgroupPath", required=False),
        exclusions=exclusions,
        troubles=troubles,
    )


def parse_delete(body: bytes) -> str:
    """Read the body of a `/cmddel`: the pod's uid. Raises: ValueError as `parse_add`."""
    return _text(_object(body), "UID", _UID)


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("the body is not a JSON object")
    return document


def _text(document: dict[str, Any], field: str, pattern: re.Pattern[str], default: str | None = None) -> str:
    value = document.get(field) or default
    if value is None:
        raise ValueError(f"{field} is missing")
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{field}: {_short(value)} is not a name of the form {pattern.pattern}")
    return value


def _path(document: dict[str, Any], field: str, required: bool) -> str:
    value = document.get(field) or ""
    if not value and not required:
        return ""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 4095:
        raise ValueError(f"{field}: {_short(value)} is not an absolute path")
    if ".." in value.split("/"):
        raise ValueError(f"{field}: {_short(value)} leads out of its folder")
    return value


def _addresses(value: Any) -> tuple[Address, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_ADDRESSES:
        raise ValueError(f"IPs: expected a list of at most {MAX_ADDRESSES}")
    addresses: list[Address] = []
    for number, entry in enumerate(value):
        try:
            address = ip_address(entry["Address"]["IP"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"IPs[{number}].Address.IP: {_short(entry)}: expected an IP address") from error
        if address not in addresses:
            addresses.append(address)
    return tuple(addresses)


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        raise ValueError(f"Labels: expected an object of at most {MAX_LABELS} labels")
    for key, text in value.items():
        if not key or not isinstance(text, str) or not _LABEL.fullmatch(key) or not _LABEL.fullmatch(text):
            raise ValueError(f"Labels: {_short({key: text})} is not a label")
    return tuple(sorted(value.items()))


def _annotations(value: Any) -> dict[str, str]:
    """Those that weft reads."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_ANNOTATIONS:
        raise ValueError(f"Annotations: expected an object of at most {MAX_ANNOTATIONS} annotations")
    known = {name: value[name] for name in ANNOTATIONS if name in value}
    for name, text in known.items():
        if not isinstance(text, str):
            raise ValueError(f"Annotations: {name}: {_short(text)} is not text: write it in quotes")
    return known


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
