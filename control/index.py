"""Objects, pod reports and service addresses in; workloads, services, policies and their encoded resources out. Pure.

Whatever the source of the objects, this is the one place where they become what proxies get. It keeps every noun with its
resource, works out which ones a change can touch, makes only those anew, and encodes only those that came out different: so a
pod that becomes ready costs one encoding, in a mesh of any size.

    pod, its report, its node                 -> that workload
    service                                   -> itself, and the workloads that it selects or did select, or slices name
    ServiceEntry                              -> the same; of its like all, as one may share a host with another
    WorkloadEntry, EndpointSlice              -> what is no pod in their namespace, and the pods that a slice names
    namespace                                 -> its services and workloads
    networks, gateways                        -> all services and workloads
    pods and the like, on several networks    -> the services of their namespace, which name their identities
    AuthorizationPolicy, PeerAuthentication   -> all policies; then the workloads whose list came out different
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from control.entries import entry_services, entry_workloads, served_by_slices, slice_workloads
from control.lookup import service_aliases, workload_aliases, workload_groups
from control.outsiders import Outsiders, named_pods
from control.population import Population
from control.reports import Key, PodReport
from control.selection import Selection
from control.services import AnyService, hostname_of, mesh_service
from control.table import Resources, Table
from control.topology import Topology, speaks_of_waypoints, topology
from control.waypoint_policies import guarded, waypoint_policy
from control.workloads import MeshNames, entry_workload, gateway_workload, mesh_workload, workload_uid
from mesh.authorization import Conversion, Listed, convert
from mesh.delta import Resource
from mesh.identity import Identity
from mesh.manifests import (
    AuthorizationPolicy,
    Deployment,
    EndpointSlice,
    Gateway,
    Namespace,
    Node,
    Object,
    PeerAuthentication,
    Pod,
    Service,
    ServiceEntry,
    WorkloadEntry,
    service_selects,
)
from mesh.policy import Policy
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, encode_policy, encode_service, encode_workload
from mesh.trust_domains import TrustDomains
from mesh.workload import Address, Network, Workload
from mesh.workload import Service as MeshService

TYPE_URLS = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
Addresses = Mapping[str, tuple[Address, ...]]
"""Service addresses by `namespace/name`; those of ServiceEntries by `control.entry_addresses.vip_name`."""
_ACCOUNTS = (Pod, Deployment, Service, WorkloadEntry, EndpointSlice)
"""What may say as whom a waypoint speaks."""
_SHAPING = (Namespace, Node, Gateway, Pod, Deployment, ServiceEntry, WorkloadEntry)
"""What may say something of networks and gateways; waypoints are Services."""


class _Change(NamedTuple):
    """One object before and after; None where it was or is not."""

    before: Object | None
    after: Object | None

    @property
    def object(self) -> Object:
        found = self.after or self.before
        assert found is not None
        return found

    def touches(self, *kinds: type[Object]) -> bool:
        return isinstance(self.object, kinds)


def _changes(before: Mapping[str, Object], after: Mapping[str, Object]) -> list[_Change]:
    changes = [_Change(one, None) for title, one in before.items() if title not in after]
    for title, one in after.items():
        known = before.get(title)
        if known is not one and known != one:
            changes.append(_Change(known, one))
    return changes


def _is_shaping(change: _Change) -> bool:
    return change.touches(*_SHAPING) or any(map(speaks_of_waypoints, change))


@dataclass(slots=True)
class Index:
    """The state of one mesh."""

    names: MeshNames
    ranges: Sequence[Network] = ()
    """Service ranges: which IP versions services have."""
    workloads: Table[Workload] = field(init=False)
    """By uid."""
    services: Table[MeshService] = field(init=False)
    policies: Table[Policy] = field(init=False)
    conversion: Conversion = field(default_factory=lambda: convert((), ()))
    population: Population = field(default_factory=Population)
    nodes: dict[str, Node] = field(default_factory=dict)
    topology: Topology = field(default_factory=Topology)
    objects: dict[str, Object] = field(default_factory=dict)
    """By title."""
    _services_in: dict[str, dict[str, Service]] = field(default_factory=dict)
    _selection: Selection = field(default_factory=Selection)
    _outsiders: Outsiders = field(default_factory=Outsiders)
    _guards: dict[str, Policy] = field(default_factory=dict)
    """The policies of waypoints, by key; none unless they are wanted."""
    _listed: dict[Key, Listed] = field(default_factory=dict)
    _addresses: Addresses = field(default_factory=dict)
    _resources: dict[str, Resources] = field(default_factory=lambda: {url: Resources() for url in TYPE_URLS})

    def __post_init__(self) -> None:
        """Begin with an empty mesh: no objects, and the policies that even such a mesh has."""
        addresses, authorizations = (self._resources[url] for url in TYPE_URLS)
        self.workloads = Table(encode_workload, addresses, workload_aliases, workload_groups)
        self.services = Table(encode_service, addresses, service_aliases)
        self.policies = Table(encode_policy, authorizations)
        self.topology = Topology(domain=self.names.cluster_domain)
        self._replace_policies()

    def take(self) -> dict[str, dict[str, Resource]]:
        """All resources of every type that changed since the last call; the caller's to keep."""
        taken = {url: resources.take() for url, resources in self._resources.items()}
        return {url: resources for url, resources in taken.items() if resources is not None}

    @property
    def pods(self) -> Mapping[Key, Pod]:
        """The pods that are written, wherever they run."""
        return self.population.pods

    def replace_objects(self, objects: Iterable[Object], addresses: Addresses) -> None:
        """Make a whole set of objects current, and the addresses of its services."""
        before, self.objects = self.objects, {one.title: one for one in objects}
        changes = _changes(before, self.objects)
        dirty, stale, outside = self._touched(changes)
        reshaped = any(map(_is_shaping, changes)) and self._replace_topology()
        if reshaped:
            stale.update(self._services_in)
            dirty.update(self.pods)
        services = [change for change in changes if change.touches(Service, ServiceEntry)]
        dirty |= self._replace_services(services, addresses, dirty, stale)
        if self.names.waypoint_policies and (reshaped or any(change.touches(*_ACCOUNTS) for change in changes)):
            self._replace_guards()
        secured = any(change.touches(AuthorizationPolicy, PeerAuthentication) for change in changes)
        if secured:
            dirty |= self._replace_policies()
        outside |= stale | {change.object.namespace for change in services}
        everywhere = reshaped or secured or any(change.touches(ServiceEntry) for change in changes)
        self._remake_outsiders(self._outsiders.namespaces if everywhere else self._outsiders.namespaces & outside)
        self._replace_workloads(dirty)

    def _touched(self, changes: Sequence[_Change]) -> tuple[set[Key], set[str], set[str]]:
        """Take in changes of who there is: the pods that these touch, and the namespaces of services, and of outsiders."""
        # Pods first: what services and policies mean is then asked of the pods as they are now.
        dirty = self.population.replace(changes)
        self._list(dirty)
        dirty |= self._replace_nodes([change for change in changes if change.touches(Node)])
        outside = self._outsiders.replace(changes)
        stale = {namespace for namespace, _ in dirty} | outside if len(self.topology.networks) > 1 else set()
        for namespace in {change.object.name for change in changes if change.touches(Namespace)}:
            stale.add(namespace)
            dirty |= self.population.inside(namespace)
        return dirty | {pod for change in changes for one in change for pod in named_pods(one)}, stale, outside

    def replace_reports(self, reports: Mapping[Key, PodReport], changed: Iterable[Key]) -> None:
        """Make pod reports current; `changed` are the pods for which they differ from before."""
        self.population.reports = reports
        self._replace_workloads(changed)

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod reported on a node, and not ended, runs under a service account."""
        return any(report.node == node for report in self.population.running(namespace, service_account))

    def runs(self, namespace: str, service_account: str) -> bool:
        """Whether a pod that is reported anywhere, and not ended, runs under a service account."""
        return any(True for _ in self.population.running(namespace, service_account))

    def _list(self, pods: Iterable[Key]) -> None:
        """Find out which policies select pods that are others than before."""
        for key in pods:
            pod = self.pods.get(key)
            if pod is None:
                self._listed.pop(key, None)
            else:
                self._listed[key] = self.conversion.listed_by(pod.namespace, pod.labels)

    def _replace_nodes(self, changes: Iterable[_Change]) -> set[Key]:
        names = set()
        for change in changes:
            if isinstance(change.after, Node):
                self.nodes[change.after.name] = change.after
                names.add(change.after.name)
            elif change.before is not None:
                del self.nodes[change.before.name]
                names.add(change.before.name)
        reports = self.population.reports if names else {}
        return {key for key, report in reports.items() if report.node in names}

    def _replace_topology(self) -> bool:
        """Find out about networks and gateways; whether anything changed about them."""
        current = topology(self.objects.values(), self.pods.values(), self.names.root_namespace, self.names.cluster_domain)
        if current == self.topology:
            return False
        for gone in {one.uid for one in self.topology.gateways} - {one.uid for one in current.gateways}:
            self.workloads.put(gone, None)
        for one in current.gateways:
            self.workloads.put(one.uid, gateway_workload(self.names, one))
        self.topology = current
        return True

    def _remake_outsiders(self, namespaces: Iterable[str]) -> None:
        """Make what is no pod in some namespaces, and the services that are not of Kubernetes, anew."""
        names, hosts = self._names_behind(namespaces), self._outsiders.hosts()
        for namespace in namespaces:
            services: dict[str, MeshService] = {}
            workloads: dict[str, Workload] = {}
            owner = self._owner(namespace)
            for one in self._outsiders.of(namespace):
                listed = self.conversion.listed_by(namespace, one.labels)
                if isinstance(one, WorkloadEntry):
                    behind = self._selection.of(namespace, one.labels)
                    made = [entry_workload(self.names, one, behind, listed, owner, self.topology)]
                elif isinstance(one, EndpointSlice):
                    service = self._services_in.get(namespace, {}).get(one.service)
                    made = [*slice_workloads(self.names, one, service, self.topology)]
                else:
                    made = [*entry_workloads(self.names, one, listed, owner, self.topology)]
                    told = entry_services(one, self._addresses, hosts, owner, self.topology, names.get(one.title, ()))
                    services.update((service.key, service) for service in told)
                workloads.update((workload.uid, workload) for workload in made)
            keys, uids = self._outsiders.became(namespace, services, workloads)
            for key in keys:
                if key in services or not self._is_written(namespace, key):
                    self.services.put(key, services.get(key))
            for uid in uids:
                self.workloads.put(uid, self._guarded(workloads.get(uid)))

    def _is_written(self, namespace: str, key: str) -> bool:
        """Whether a Service has this resource name, as it may since the entry that had it is gone."""
        name = key.partition("/")[2].partition(".")[0]
        return name in self._services_in.get(namespace, {}) and key == self._key(namespace, name)

    def _replace_services(
        self, changes: Iterable[_Change], addresses: Addresses, known: set[Key], namespaces: Iterable[str]
    ) -> set[Key]:
        """Make changed services anew, and those of changed `namespaces`.

        Returns the pods that changed services mean, but for those already `known` to be dirty.
        """
        dirty: set[Key] = set()
        known_names = addresses.keys() | self._addresses.keys()
        stale = {name for name in known_names if addresses.get(name) != self._addresses.get(name) and "//" not in name}
        stale |= {f"{namespace}/{name}" for namespace in namespaces for name in self._services_in.get(namespace, {})}
        self._addresses = addresses
        for before, after in changes:
            for one in (before, after):
                if isinstance(one, AnyService):
                    others = self.population.inside(one.namespace) - known
                    dirty.update(key for key in others if service_selects(one, self.pods[key]))
                if isinstance(one, Service):
                    stale.add(f"{one.namespace}/{one.name}")
                    dirty |= self._outsiders.pods_behind(one.namespace, one.name) - known
            if isinstance(before, AnyService):
                self._selection.drop(before)
            if isinstance(before, Service):
                inside = self._services_in[before.namespace]
                del inside[before.name]
                if not inside:
                    del self._services_in[before.namespace]
            if isinstance(after, AnyService):
                self._selection.add(after)
            if isinstance(after, Service):
                self._services_in.setdefault(after.namespace, {})[after.name] = after
        names = self._names_behind({name.partition("/")[0] for name in stale})
        for name in stale:
            namespace, _, short = name.partition("/")
            service = self._services_in.get(namespace, {}).get(short)
            made = None
            if service is not None:
                where, owner, several = addresses.get(name, ()), self._owner(namespace), names.get(service.title, ())
                made = mesh_service(service, where, self.ranges, owner, self.topology, several)
            self.services.put(self._key(namespace, short), made)
        return dirty

    def _key(self, namespace: str, name: str) -> str:
        """A Service's resource name."""
        return f"{namespace}/{hostname_of(namespace, name, self.names.cluster_domain)}"

    def _owner(self, namespace: str) -> Namespace | None:
        found = self.objects.get(f"Namespace {namespace}")
        return found if isinstance(found, Namespace) else None

    def _names_behind(self, namespaces: Iterable[str]) -> Mapping[str, set[str]]:
        """Who stands behind the services of some namespaces, by title; empty where nobody is on another network.

        Who is reached through a gateway can be expected by this alone (facts: 4.1, inner tunnel).
        """
        return self._identities_behind(namespaces) if len(self.topology.networks) > 1 else {}

    def _identities_behind(self, namespaces: Iterable[str]) -> Mapping[str, set[str]]:
        behind: dict[str, set[str]] = {}
        for namespace in namespaces:
            for title, account in self._accounts_behind(namespace):
                behind.setdefault(title, set()).add(str(Identity(self.names.trust_domain, namespace, account)))
        return behind

    def _accounts_behind(self, namespace: str) -> Iterator[tuple[str, str]]:
        for pod in (self.pods[key] for key in self.population.inside(namespace)):
            for service in self._selection.of(namespace, pod.labels):
                yield service.title, pod.spec.service_account
            for naming in self._outsiders.naming((namespace, pod.name)):
                yield f"Service {namespace}/{naming.service}", pod.spec.service_account
        for one in self._outsiders.of(namespace):
            if isinstance(one, ServiceEntry):
                yield from ((one.title, endpoint.service_account or "default") for endpoint in one.endpoints)
            elif isinstance(one, WorkloadEntry):
                account = one.endpoint.service_account or "default"
                yield from ((service.title, account) for service in self._selection.of(namespace, one.labels))

    def _replace_policies(self) -> set[Key]:
        self.conversion = convert(
            [one for one in self.objects.values() if isinstance(one, AuthorizationPolicy)],
            [one for one in self.objects.values() if isinstance(one, PeerAuthentication)],
            self.names.root_namespace,
        )
        domains = TrustDomains(self.names.trust_domain, self.names.trust_domain_aliases)
        current = {policy.key: domains.expand(policy) for policy in self.conversion.policies} | self._guards
        for key in self.policies.nouns.keys() - current.keys():
            self.policies.put(key, None)
        for key, policy in current.items():
            self.policies.put(key, policy)
        listed = {key: self.conversion.listed_by(pod.namespace, pod.labels) for key, pod in self.pods.items()}
        dirty = {key for key, one in listed.items() if one != self._listed[key]}
        self._listed = listed
        return dirty

    def _replace_workloads(self, dirty: Iterable[Key]) -> None:
        for key in dirty:
            pod, report = self.pods.get(key), self.population.report_of(key)
            made = None
            if pod is not None and report is not None and report.node in self.nodes:
                services = self._selection.of(pod.namespace, pod.labels)
                node, owner = self.nodes[report.node], self._owner(pod.namespace)
                naming, inside = self._outsiders.naming(key), self._services_in.get(pod.namespace, {})
                sliced = served_by_slices(pod.name, naming, inside, self.names.cluster_domain)
                made = mesh_workload(self.names, pod, report, services, self._listed[key], node, owner, self.topology, sliced)
            self.workloads.put(workload_uid(self.names, *key), self._guarded(made))

    def _guarded(self, workload: Workload | None) -> Workload | None:
        return guarded(workload, self.services.nouns) if workload is not None and self.names.waypoint_policies else workload

    def _replace_guards(self) -> None:
        """Make the policies of all waypoints that anybody asks for, who may all have come to be others."""
        wishes = self.topology.wishes
        identities = self._identities_behind({namespace for namespace, _ in wishes})
        made = [waypoint_policy(one, identities.get(f"Service {one[0]}/{one[1]}", ())) for one in wishes]
        domains = TrustDomains(self.names.trust_domain, self.names.trust_domain_aliases)
        before, self._guards = self._guards, {policy.key: domains.expand(policy) for policy in made}
        for key in before.keys() | self._guards.keys():
            self.policies.put(key, self._guards.get(key))
