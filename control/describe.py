"""What proxies are told, as JSON for people: a proxy's config dump, plus the user's object behind each resource. Pure."""

from collections.abc import Iterator
from typing import Any

from control.index import Index
from control.services import hostname_of
from mesh.dump import dump_policy, dump_service, dump_workload
from mesh.inventory import Inventory
from mesh.manifests.metadata import title
from mesh.workload import Service, Workload

KINDS = ("workloads", "services", "policies")


def describe(index: Index, kind: str) -> Iterator[dict[str, Any]]:
    """Show every resource of one of KINDS. Raises: ValueError for any other kind."""
    if kind == "workloads":
        gateways = {one.uid: one.title for one in index.topology.gateways}
        for workload in index.workloads.nouns.values():
            yield dump_workload(workload) | {"object": gateways.get(workload.uid) or _source_of_workload(index, workload)}
    elif kind == "services":
        inventory = Inventory()
        inventory.apply([*index.services.nouns.values(), *index.workloads.nouns.values()], ())
        for key, service in index.services.nouns.items():
            yield dump_service(service, inventory.endpoints(key)) | {"object": _source_of_service(index, service)}
    elif kind == "policies":
        for key, policy in index.policies.nouns.items():
            yield dump_policy(policy) | {"object": index.conversion.sources.get(key, "")}
    else:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")


def _source_of_workload(index: Index, workload: Workload) -> str:
    """The object that its author wrote: its uid names the kind, after the cluster and the API group."""
    kind = workload.uid.removeprefix(f"{index.names.cluster}/").split("/")[1]
    pod = index.pods[workload.namespace, workload.name] if kind == "Pod" else None
    if pod is not None and pod.deployment:
        return title("Deployment", pod.namespace, pod.deployment)
    return title(kind, workload.namespace, workload.name)


def _source_of_service(index: Index, service: Service) -> str:
    """The same for a service: a Service's hostname may be an entry's only where there is no such Service."""
    found = title("Service", service.namespace, service.name)
    is_its_own = service.hostname == hostname_of(service.namespace, service.name, index.names.cluster_domain)
    return found if is_its_own and found in index.objects else title("ServiceEntry", service.namespace, service.name)
