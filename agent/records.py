"""Enrolled pods on disk: one JSON file each, written before anything else is done for a pod and removed after all is undone.

So after a crash at any point the records tell of everything that may be in the kernel. Nothing secret is in them.
"""

import json
import os
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from agent.pod import Pod, PodRequest
from mesh.exclusions import Exclusions

VERSION = 1
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """A pod, and what the agent must still know of it after a restart."""

    pod: Pod
    enrolled_unix_s: int
    pre_mesh: tuple[tuple[str, int, str, int], ...] = ()
    """Connections older than the enrolment: local address and port, remote address and port."""
    sysctls: tuple[tuple[str, str], ...] = ()
    """The namespace's own settings, to be given back; empty: they were not touched yet."""
    served: tuple[int, ...] = ()
    """Local ports of `pre_mesh` on which the pod listened when they were found: a server that is to end listens no more."""


class Records:
    """The folder of records; every write is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, record: Record) -> None:
        """Write a pod's record, in place of an older one. OSError when the disk does not take it."""
        path = self._path(record.pod.uid)
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                json.dump(_to_document(record), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error.strerror}: make room, or mend the disk") from error

    def remove(self, uid: str) -> None:
        """Forget a pod; a missing record is fine."""
        self._path(uid).unlink(missing_ok=True)

    def read(self) -> tuple[list[Record], dict[str, str]]:
        """All records, and by uid a sentence for each file that is none: it stays where it is, for a person to look at."""
        records, problems = [], {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                if path.stat().st_size > _MAX_BYTES:
                    raise ValueError(f"larger than {_MAX_BYTES} bytes")
                record = _from_document(json.loads(path.read_text()))
                if self._path(record.pod.uid) != path:
                    raise ValueError(f"holds pod {record.pod.uid}")
                records.append(record)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                problems[path.stem] = f"record {path} is not readable ({error!r}): enrol its pod anew, or withdraw it"
        return records, problems

    def _path(self, uid: str) -> Path:
        return self._folder / f"{uid}.json"


def _to_document(record: Record) -> dict[str, Any]:
    pod, request = record.pod, record.pod.request
    return {
        "version": VERSION,
        "uid": request.uid,
        "namespace": request.namespace,
        "name": request.name,
        "service_account": request.service_account,
        "netns": request.netns,
        "netns_id": list(pod.netns_id),
        "netns_cookie": pod.cookie,
        "boot_id": pod.boot_id,
        "addresses": [str(address) for address in request.addresses],
        "labels": dict(request.labels),
        "cgroup": request.cgroup,
        "exclusions": _exclusions_document(request.exclusions),
        "troubles": list(request.troubles),
        "enrolled_unix_s": record.enrolled_unix_s,
        "sysctls": dict(record.sysctls),
        "pre_mesh": [list(connection) for connection in record.pre_mesh],
        "served": list(record.served),
    }


def _from_document(document: dict[str, Any]) -> Record:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}, expected {VERSION}")
    request = PodRequest(
        uid=str(document["uid"]),
        namespace=str(document["namespace"]),
        name=str(document["name"]),
        service_account=str(document["service_account"]),
        netns=str(document["netns"]),
        addresses=tuple(ip_address(text) for text in document["addresses"]),
        labels=tuple(sorted((str(key), str(value)) for key, value in document["labels"].items())),
        cgroup=str(document["cgroup"]),
        exclusions=_read_exclusions(document.get("exclusions", {})),
        troubles=tuple(str(sentence) for sentence in document.get("troubles", [])),
    )
    device, inode = document["netns_id"]
    pod = Pod(request, (int(device), int(inode)), int(document["netns_cookie"]), str(document["boot_id"]))
    connections = tuple((str(a), int(b), str(c), int(d)) for a, b, c, d in document["pre_mesh"])
    sysctls = tuple(sorted((str(name), str(text)) for name, text in document["sysctls"].items()))
    served = tuple(int(port) for port in document.get("served", []))
    return Record(pod, int(document["enrolled_unix_s"]), connections, sysctls, served)


def _exclusions_document(exclusions: Exclusions) -> dict[str, Any]:
    return {
        "outbound_ports": list(exclusions.outbound_ports),
        "outbound_ranges": [str(network) for network in exclusions.outbound_ranges],
        "inbound_ports": list(exclusions.inbound_ports),
        "all_inbound": exclusions.all_inbound,
        "dns": exclusions.dns,
    }


def _read_exclusions(document: dict[str, Any]) -> Exclusions:
    """What is not there is not excluded: records of agents that knew no exclusions have none."""
    return Exclusions(
        tuple(int(port) for port in document.get("outbound_ports", [])),
        tuple(ip_network(text) for text in document.get("outbound_ranges", [])),
        tuple(int(port) for port in document.get("inbound_ports", [])),
        document.get("all_inbound", False) is True,
        document.get("dns", False) is True,
    )
