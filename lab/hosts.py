"""DNS in miniature: the text of a pod's /etc/hosts and /etc/resolv.conf.

Services are known by `name` (in their own namespace), `name.ns`, `name.ns.svc` and `name.ns.svc.DOMAIN`; a headless one
stands for its pods, each of which is also known as `pod.name.ns.svc.DOMAIN` and its short forms.
What is not listed is asked of the node, where no nameserver is: in the mesh the pod's DNS proxy answers in its place, pods
outside are refused at once.
"""

from collections.abc import Iterable, Sequence

from lab.endpoints import Endpoint, backends
from mesh.manifests import Service
from mesh.workload import Address

_LOCAL = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def service_lines(namespace: str, services: Iterable[Service], endpoints: Sequence[Endpoint], domain: str) -> str:
    """The part that all pods of a namespace share."""
    lines = []
    for service in sorted(services, key=lambda one: (one.namespace, one.name)):
        names = _names(service.name, service.namespace, namespace, domain)
        lines += [f"{vip}\t{names}" for vip in service.cluster_ips]
        if service.headless:
            for one in backends(service, endpoints):
                own = _names(f"{one.pod.name}.{service.name}", service.namespace, namespace, domain)
                lines += [f"{address}\t{names} {own}" for address in one.addresses]
    return "".join(f"{line}\n" for line in lines)


def _names(name: str, owner: str, namespace: str, domain: str) -> str:
    short = [name] if owner == namespace else []
    return " ".join([f"{name}.{owner}.svc.{domain}", f"{name}.{owner}.svc", f"{name}.{owner}", *short])


def hosts_file(hostname: str, addresses: Sequence[Address], shared: str) -> str:
    """A pod's whole /etc/hosts: loopback, itself, services."""
    own = "".join(f"{address}\t{hostname}\n" for address in addresses)
    return f"# Kept by the lab: names of this pod and of all services.\n{_LOCAL}{own}{shared}"


def resolver_file(namespace: str, domain: str, nameservers: Iterable[Address]) -> str:
    """A pod's /etc/resolv.conf."""
    lines = [
        *(f"nameserver {address}" for address in nameservers),
        f"search {namespace}.svc.{domain} svc.{domain} {domain}",
        "options ndots:5 timeout:1 attempts:1",
    ]
    return "".join(f"{line}\n" for line in lines)
