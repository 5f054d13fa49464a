"""What proxies are told, as JSON for people: a proxy's config dump, plus the user's object behind each resource. Pure."""

from collections.abc import Iterator
from typing import Any

from control.index import Index
from mesh.dump import dump_policy, dump_service, dump_workload
from mesh.inventory import Inventory
from mesh.manifests import Pod
from mesh.manifests.metadata import title

KINDS = ("workloads", "services", "policies")


def describe(index: Index, kind: str) -> Iterator[dict[str, Any]]:
    """Show every resource of one of KINDS. Raises: ValueError for any other kind."""
    if kind == "workloads":
        gateways = {one.uid: one.title for one in index.topology.gateways}
        for workload in index.workloads.nouns.values():
            pod = index.pods.get((workload.namespace, workload.name))
            yield dump_workload(workload) | {"object": _source_of(pod) if pod is not None else gateways[workload.uid]}
    elif kind == "services":
        inventory = Inventory()
        inventory.apply([*index.services.nouns.values(), *index.workloads.nouns.values()], ())
        for key, service in index.services.nouns.items():
            found = title("Service", service.namespace, service.name)
            yield dump_service(service, inventory.endpoints(key)) | {"object": found}
    elif kind == "policies":
        for key, policy in index.policies.nouns.items():
            yield dump_policy(policy) | {"object": index.conversion.sources.get(key, "")}
    else:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")


def _source_of(pod: Pod) -> str:
    """The object that the pod's author wrote."""
    if pod.deployment:
        return title("Deployment", pod.namespace, pod.deployment)
    return title("Pod", pod.namespace, pod.name)
