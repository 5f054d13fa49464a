"""Under which names proxies on demand ask for workloads and services, and what they are given along with them. Pure."""

from mesh.workload import NamespacedHostname, NetworkAddress, Service, Workload


def node_group(node: str) -> str:
    """The group of a node's workloads: its proxies are given them unasked."""
    return f"@{node}"


def workload_aliases(workload: Workload) -> tuple[str, ...]:
    """A workload is asked for by its addresses, also one that shares them with its node, and by a hostname of its own."""
    hostname = (str(NamespacedHostname(workload.namespace, workload.hostname)),) if workload.hostname else ()
    return (*(str(NetworkAddress(workload.network, address)) for address in workload.addresses), *hostname)


def workload_groups(workload: Workload) -> tuple[str, ...]:
    """It comes along with its services, and to its own node."""
    return (*((node_group(workload.node),) if workload.node else ()), *workload.services)


def service_aliases(service: Service) -> tuple[str, ...]:
    """A service is asked for by its virtual addresses, and by any address inside its ranges."""
    return tuple(map(str, service.vips))
