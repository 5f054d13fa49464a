"""What objects mean to each other: the pods there are, whom a selector means, who is in the mesh, what cannot be together."""

from collections.abc import Iterable, Iterator, Mapping

from mesh.manifests.cluster import Namespace, Node
from mesh.manifests.deployment import Deployment
from mesh.manifests.endpoint_slice import SERVICE, EndpointSlice
from mesh.manifests.gateway import NETWORK
from mesh.manifests.metadata import Object
from mesh.manifests.pod import Pod
from mesh.manifests.problem import Problem
from mesh.manifests.service import Service
from mesh.manifests.service_entry import DYNAMIC, ServiceEntry
from mesh.manifests.workload_entry import WorkloadEntry
from mesh.workload import Network

DATAPLANE_MODE = "istio.io/dataplane-mode"
USE_WAYPOINT, _WAYPOINT_NAMESPACE = "istio.io/use-waypoint", "istio.io/use-waypoint-namespace"
_CANARY, _CANARY_NAMESPACE = f"{USE_WAYPOINT}-canary", f"{USE_WAYPOINT}-canary-namespace"
_CANARY_WEIGHT = f"{USE_WAYPOINT}-canary-weight"
_MAX_DIGITS = 9
WAYPOINT_PORT = 15008
_SIDECAR = "sidecar.istio.io/status"
_NOBODY_FINDS = f"{DYNAMIC} is for a waypoint to resolve, and it has none (label {USE_WAYPOINT}): its hosts are not reached"


def pods_of(objects: Iterable[Object]) -> list[Pod]:
    """List all pods: those written as such, and those of deployments, as NAME-0, NAME-1 and so on."""
    pods: list[Pod] = []
    for one in objects:
        if isinstance(one, Pod):
            pods.append(one)
        elif isinstance(one, Deployment):
            pods.extend(one.pods())
    return pods


def named_networks(objects: Iterable[Object], root_namespace: str) -> tuple[str, dict[str, str]]:
    """The network of everything that says none, as the root namespace's label has it, and those of nodes that name theirs."""
    known = list(objects)
    namespaces = (one for one in known if isinstance(one, Namespace) and one.name == root_namespace)
    root = next((one.labels.get(NETWORK, "") for one in namespaces), "")
    return root, {one.name: name for one in known if isinstance(one, Node) and (name := one.labels.get(NETWORK, ""))}


def is_enrolled(pod: Pod, namespace: Namespace | None) -> bool:
    """Whether a pod is to be in the mesh: its own label beats its namespace's, either way.

    Never: pods on their node's network, and pods that carry a sidecar.
    """
    if pod.spec.host_network or _SIDECAR in pod.metadata.annotations:
        return False
    own = pod.labels.get(DATAPLANE_MODE)
    if own in ("ambient", "none"):
        return own == "ambient"
    return namespace is not None and namespace.labels.get(DATAPLANE_MODE) == "ambient"


def waypoint_wish(namespace: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Namespace and name of the service that labels ask for as a waypoint; None where they ask for none."""
    name = labels.get(USE_WAYPOINT, "none")
    return None if name in ("", "none") else (labels.get(_WAYPOINT_NAMESPACE) or namespace, name)


def spoken_wish(namespace: str, *labels: Mapping[str, str]) -> tuple[str, str] | None:
    """What the first labels that speak of a waypoint ask for, as `waypoint_wish`: a service's own go before its namespace's."""
    return waypoint_wish(namespace, next((one for one in labels if one.get(USE_WAYPOINT)), {}))


def second_wish(namespace: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Namespace and name of the service that labels ask for as a second waypoint; None where they ask for none."""
    name = labels.get(_CANARY, "none")
    return None if name in ("", "none") else (labels.get(_CANARY_NAMESPACE) or namespace, name)


def canary_wish(service: Service | ServiceEntry, owner: Namespace | None) -> tuple[tuple[str, str], int] | None:
    """A second waypoint that a service asks for, beside that of `waypoint_wish`, and its share in percent.

    What its namespace says counts only where the service names no waypoint of its own. Raises: ValueError for a wrong share.
    """
    levels = [service.metadata]
    if owner is not None and not service.labels.get(USE_WAYPOINT):
        levels.append(owner.metadata)
    wish = second_wish(service.namespace, next((one.labels for one in levels if _CANARY in one.labels), {}))
    if wish is None:
        return None
    share = next((one.annotations[_CANARY_WEIGHT] for one in levels if _CANARY_WEIGHT in one.annotations), "0")
    if not share.isascii() or not share.isdigit() or len(share) > _MAX_DIGITS or int(share) > 100:
        raise ValueError(f"{share[:40]!r} is no share: write a number of percent from 0 to 100")
    return wish, int(share)


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil a selector; one without labels selects everything (but see `service_selects`)."""
    return all(labels.get(key) == value for key, value in (selector or {}).items())


def service_selects(service: Service | ServiceEntry, one: Pod | WorkloadEntry) -> bool:
    """Whether somebody stands behind a service; behind one without selector nobody does by labels."""
    return bool(service.selector) and service.namespace == one.namespace and selects(service.selector, one.labels)


def check_references(objects: Iterable[Object]) -> list[Problem]:
    """Find what is wrong only between objects: pods of one name, nodes that share addresses or do not exist.

    Waypoints that are not there are warnings, and so is whom a slice names: who wants one may come before it. For a whole set;
    the problems name objects, not files.
    """
    known = list(objects)
    nodes = {one.name: one for one in known if isinstance(one, Node)}
    refused = [*_overlaps(list(nodes.values())), *_pod_clashes(known), *_unplaced(known, nodes), *_fixed_addresses(known)]
    return [*refused, *_waypoints(known), *_absent(known)]


def _refuse(one: Object, field: str, reason: str) -> Problem:
    return Problem("", 0, one.title, field, reason)


def _warn(one: Object, field: str, reason: str) -> Problem:
    return Problem("", 0, one.title, field, reason, warning=True)


def _overlaps(nodes: list[Node]) -> list[Problem]:
    problems = []
    claims = [(cidr, node) for node in nodes for cidr in node.pod_cidrs]
    widest: tuple[Network, Node] | None = None
    # In order of their first address, a range overlaps an earlier one exactly if it overlaps the one that reaches furthest.
    for cidr, node in sorted(claims, key=lambda claim: (claim[0].version, int(claim[0][0]), -claim[0].num_addresses)):
        if widest is not None and cidr.version == widest[0].version and int(cidr[0]) <= int(widest[0][-1]):
            problems.append(_refuse(node, "spec.podCIDRs", f"{cidr} overlaps {widest[0]} of {widest[1].title}"))
        else:
            widest = cidr, node
    return problems


def _pod_clashes(objects: list[Object]) -> list[Problem]:
    problems = []
    made: dict[str, str] = {}
    for pod in pods_of(objects):
        owner = pod.metadata.owner or pod.title
        first = made.setdefault(pod.title, owner)
        if first != owner:
            problems.append(_refuse(pod, "metadata.name", f"this name belongs to {first} and to {owner}"))
    return problems


def _unplaced(objects: list[Object], nodes: Mapping[str, Node]) -> list[Problem]:
    problems = []
    for one in objects:
        spec = one.spec if isinstance(one, (Pod, Deployment)) else None
        if spec is not None and spec.node_name and spec.node_name not in nodes:
            field = "spec.nodeName" if isinstance(one, Pod) else "spec.template.spec.nodeName"
            problems.append(_refuse(one, field, f"there is no Node {spec.node_name}"))
    return problems


def _absent(objects: list[Object]) -> Iterator[Problem]:
    """Whom slices name and nobody has written: nobody is reached by them, and nothing else would say so."""
    slices = [one for one in objects if isinstance(one, EndpointSlice)]
    pods = {(one.namespace, one.name) for one in pods_of(objects)} if slices else set()
    services = {(one.namespace, one.name) for one in objects if isinstance(one, Service)} if slices else set()
    for one in slices:
        if one.service and (one.namespace, one.service) not in services:
            reason = f"there is no Service {one.namespace}/{one.service}: it stands behind nobody until there is"
            yield _warn(one, f"metadata.labels[{SERVICE}]", reason)
        for index, endpoint in enumerate(one.endpoints):
            if endpoint.pod and (one.namespace, endpoint.pod) not in pods:
                reason = f"there is no Pod {one.namespace}/{endpoint.pod}: it is left out until there is"
                yield _warn(one, f"endpoints[{index}].targetRef.name", reason)


def _fixed_addresses(objects: list[Object]) -> list[Problem]:
    problems = []
    owners: dict[object, str] = {}
    for service in (one for one in objects if isinstance(one, Service)):
        for address in service.cluster_ips:
            first = owners.setdefault(address, service.title)
            if first != service.title:
                problems.append(_refuse(service, "spec.clusterIP", f"{address} belongs to {first}"))
    return problems


def _waypoints(objects: list[Object]) -> list[Problem]:
    """Wishes for a waypoint that no proxy can fulfil: it refuses connections instead."""
    services = {(one.namespace, one.name): one for one in objects if isinstance(one, Service)}
    owners = {one.name: one for one in objects if isinstance(one, Namespace)}
    problems = []
    asking: list[Object] = [one for one in objects if isinstance(one, (Service, ServiceEntry, WorkloadEntry, Namespace))]
    for one in (*asking, *pods_of(objects)):
        wish = waypoint_wish(one.name if isinstance(one, Namespace) else one.namespace, one.labels)
        reason = _unreachable(wish, services) if wish is not None else ""
        if reason:
            problems.append(_warn(one, f"metadata.labels[{USE_WAYPOINT}]", reason))
    problems += [_warn(one, "spec.resolution", _NOBODY_FINDS) for one in objects if _is_lost(one, owners)]
    for service in (one for one in objects if isinstance(one, (Service, ServiceEntry))):
        problems += _canaries(service, owners.get(service.namespace), services)
    return problems


def _is_lost(one: Object, owners: Mapping[str, Namespace]) -> bool:
    """Whether only a waypoint could find where it is, and it has none."""
    if not isinstance(one, ServiceEntry) or one.resolution != DYNAMIC:
        return False
    owner = owners.get(one.namespace)
    return spoken_wish(one.namespace, one.labels, owner.labels if owner else {}) is None


def _unreachable(wish: tuple[str, str], services: Mapping[tuple[str, str], Service]) -> str:
    found = services.get(wish)
    if found is None:
        return f"there is no Service {wish[0]}/{wish[1]}: who is behind that waypoint is not reached until there is"
    if all(port.port != WAYPOINT_PORT for port in found.ports):
        return f"{found.title} has no port {WAYPOINT_PORT}: who is behind that waypoint is not reached until it has"
    return ""


def _canaries(
    service: Service | ServiceEntry, owner: Namespace | None, services: Mapping[tuple[str, str], Service]
) -> list[Problem]:
    where = f"metadata.labels[{_CANARY}]"
    try:
        wish = canary_wish(service, owner)
    except ValueError as error:
        return [_warn(service, f"metadata.annotations[{_CANARY_WEIGHT}]", f"{error}; the first waypoint gets all")]
    if wish is None:
        return []
    first = spoken_wish(service.namespace, service.labels, owner.labels if owner else {})
    if first is None:
        return [_warn(service, where, f"no effect without a first waypoint (label {USE_WAYPOINT})")]
    if first == wish[0]:
        return [_warn(service, where, "no effect: it is the first waypoint")]
    if not _unreachable(wish[0], services) or not wish[1]:
        return []
    name = "/".join(wish[0])
    return [
        _warn(
            service, where, f"there is no Service {name} with port {WAYPOINT_PORT}: the first waypoint gets all until there is"
        )
    ]
