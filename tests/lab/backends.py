"""A service and the pods behind it, as the lab's daemon knows them."""

from ipaddress import ip_address

from lab.endpoints import Endpoint
from mesh.manifests import Container, ContainerPort, Metadata, Pod, PodSpec, Service, ServicePort


def endpoint(name: str, *addresses: str, ready: bool = True, port_name: str = "http") -> Endpoint:
    """A pod of namespace shop."""
    container = Container("c", ("run",), ports=(ContainerPort(8080, port_name),))
    pod = Pod(Metadata(name, "shop", {"app": "web"}), PodSpec((container,)))
    return Endpoint(pod, tuple(map(ip_address, addresses)), ready)


def service(*vips: str, target: int | str = "http", selector: dict[str, str] | None = None, headless: bool = False) -> Service:
    """The service web in front of it."""
    selector = {"app": "web"} if selector is None else selector
    return Service(
        Metadata("web", "shop"),
        cluster_ips=tuple(map(ip_address, vips)),
        headless=headless,
        ports=(ServicePort(80, target),),
        selector=selector,
    )


PODS = [endpoint("w1", "10.1.0.5", "fd00::5"), endpoint("w2", "10.2.0.6"), endpoint("w3", "10.2.0.7", ready=False)]
