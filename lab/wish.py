"""What should run: one pod as the lab has placed it. A plain value; `lab.desired` makes them, `lab.pod` makes them true."""

from dataclasses import dataclass

from lab.addresses import Interface, textual
from mesh.manifests import Pod
from mesh.workload import Network


@dataclass(frozen=True, slots=True)
class PodWish:
    """One life of one pod: another uid is another pod."""

    pod: Pod
    uid: str
    node: str
    addresses: tuple[Interface, ...]
    """Empty for a hostNetwork pod."""
    ranges: tuple[Network, ...]
    underlay: tuple[Interface, ...]
    """Its node's addresses, which a hostNetwork pod shares."""
    enrol: bool
    domain: str

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.pod.namespace}/{self.pod.name}"

    @property
    def host_network(self) -> bool:
        """Whether it shares its node's network."""
        return self.pod.spec.host_network

    @property
    def own_addresses(self) -> tuple[Interface, ...]:
        """The addresses by which it is reached."""
        return self.underlay if self.host_network else self.addresses

    @property
    def address_texts(self) -> list[str]:
        """The same as text, v4 first."""
        return textual(self.own_addresses)

    @property
    def life(self) -> tuple[object, ...]:
        """What cannot change without a new pod; labels, annotations and enrolment can."""
        return self.uid, self.node, self.addresses, self.underlay, self.pod.spec
