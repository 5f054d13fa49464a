"""What a name means to a pod: a service, or one pod of a headless service. A pure decision over the inventory.

Source: facts of Istio's ztunnel, section 7. Beyond it, `POD.SERVICE.NAMESPACE.svc.DOMAIN` is answered where the service is
headless and has a pod of that name. Names are lower case, without the last dot.
"""

from collections.abc import Iterator
from typing import NamedTuple

from mesh.domains import CLUSTER_DOMAIN
from mesh.inventory import Inventory
from mesh.workload import Address, IPFamilies, Service, Workload


class Zone(NamedTuple):
    """What all names of this proxy are looked up with."""

    domain: str = CLUSTER_DOMAIN
    preferred_namespace: str = ""
    """Whose services win where neither the client's namespace nor a canonical one has the name."""
    ipv6: bool = True
    """False: names have no IPv6 addresses."""
    search: tuple[str, ...] | None = None
    """The domains that pods' resolvers append; None: Kubernetes' usual ones, by namespace."""


class Found(NamedTuple):
    """A name of the mesh. Without addresses: there is none of the family that was asked for."""

    alias: str
    """What the name stands for by a search domain; empty where it is the name itself."""
    addresses: tuple[Address, ...]


class Candidate(NamedTuple):
    """A name that may have been meant."""

    name: str
    alias: str
    """The asked name without its search domain; empty where none was taken off."""


def find(inventory: Inventory, zone: Zone, client: Workload, name: str, version: int) -> Found | None:
    """Resolve a name for a client to addresses of one IP version; None when the mesh does not know it."""
    for candidate in candidates(name, client.namespace, zone.domain, zone.search):
        service = _best(inventory, zone, client, candidate.name)
        if service is not None:
            return Found(candidate.alias, _addresses_of(inventory, zone, client, service, version))
        pod = _pod(inventory, zone, client, candidate.name)
        if pod is not None:
            return Found(candidate.alias, _of_family(pod, version) if version == 4 or zone.ipv6 else ())
        for wildcard in wildcards(candidate.name):
            service = _best(inventory, zone, client, wildcard)
            if service is not None:
                return Found("", _addresses_of(inventory, zone, client, service, version))
    return None


def candidates(name: str, namespace: str, domain: str, search: tuple[str, ...] | None = None) -> Iterator[Candidate]:
    """The names that may have been meant, the likeliest first, each once; none by an empty one (see `Question.name`)."""
    if not name:
        return
    seen: set[str] = set()
    searched = (f"{namespace}.svc.{domain}", f"svc.{domain}", domain) if search is None else search
    stripped = [name.removesuffix(f".{suffix}") for suffix in searched if name.endswith(f".{suffix}")]
    for base in (name, *stripped):
        alias = "" if base is name else base
        for one in (base, *expansions(base, namespace, domain)):
            if one not in seen:
                seen.add(one)
                yield Candidate(one, alias)


def expansions(name: str, namespace: str, domain: str) -> list[str]:
    """The full names of services and pods for which a short one may stand."""
    labels = name.count(".") + 1
    if labels == 1:
        return [f"{name}.{namespace}.svc.{domain}"]
    if labels == 2:
        return [f"{name}.svc.{domain}", f"{name}.{namespace}.svc.{domain}"]
    of_service = [f"{name}.{domain}"] if labels <= 4 and name.endswith(".svc") else []
    return of_service + ([f"{name}.svc.{domain}"] if labels == 3 else [])


def wildcards(name: str) -> Iterator[str]:
    """The wildcards that cover a name, the closest first."""
    while "." in name:
        name = name.partition(".")[2]
        yield f"*.{name}"


def _best(inventory: Inventory, zone: Zone, client: Workload, hostname: str) -> Service | None:
    """Of the services with a hostname that a client may see: of its namespace, canonical, of the preferred one, the first."""
    services = inventory.services_by_hostname(hostname)
    if not services:  # as with almost all that is tried
        return None
    named = [one for one in services if _is_answered(one, zone) and one.is_shown_to(client.namespace)]
    return min(
        named,
        key=lambda one: (
            one.namespace != client.namespace,
            not one.canonical,
            one.namespace != zone.preferred_namespace,
            one.key,
        ),
        default=None,
    )


def _is_answered(service: Service, zone: Zone) -> bool:
    """Whether it has addresses to answer with. A headless service outside the cluster's domain is not ours to answer."""
    return not _is_headless(service) or service.hostname.endswith(f".svc.{zone.domain}")


def _is_headless(service: Service) -> bool:
    """Whether it has no address of its own; ranges are none."""
    return all(vip.prefix is not None for vip in service.vips)


def _addresses_of(inventory: Inventory, zone: Zone, client: Workload, service: Service, version: int) -> tuple[Address, ...]:
    if not zone.ipv6 and version == 6:
        return ()
    if service.ip_families is (IPFamilies.IPV6_ONLY if version == 4 else IPFamilies.IPV4_ONLY):
        return ()
    if not _is_headless(service):
        return tuple(
            vip.address
            for vip in service.vips
            if vip.prefix is None and vip.network == client.network and vip.address.version == version
        )
    # One address for each endpoint: a pod is one answer, however many it has.
    return tuple(found[0] for one in inventory.endpoints(service.key) if (found := _of_family(one.workload, version)))


def _of_family(workload: Workload, version: int) -> tuple[Address, ...]:
    return tuple(address for address in workload.addresses if address.version == version)[:1]


def _pod(inventory: Inventory, zone: Zone, client: Workload, name: str) -> Workload | None:
    """The pod of a headless service that a name stands for."""
    pod, _, hostname = name.partition(".")
    if not hostname.endswith(f".svc.{zone.domain}"):
        return None
    service = _best(inventory, zone, client, hostname)
    if service is None or not _is_headless(service):
        return None
    return inventory.endpoint_of_pod(service, pod)
