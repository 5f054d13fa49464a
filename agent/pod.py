"""A pod as the agent enrols it."""

from dataclasses import dataclass
from functools import lru_cache

from mesh.exclusions import NOTHING, Exclusions
from mesh.workload import Address


@dataclass(frozen=True, slots=True)
class PodRequest:
    """What the container runtime says about a pod."""

    uid: str
    """The Kubernetes object's uid, also the name of its pins and of its record."""
    namespace: str
    name: str
    service_account: str
    netns: str
    """Path of the network namespace."""
    addresses: tuple[Address, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    cgroup: str = ""
    """Path of the pod's cgroup; empty where the runtime does not say."""
    exclusions: Exclusions = NOTHING
    """What its annotations exclude from capture."""
    troubles: tuple[str, ...] = ()
    """A sentence for each annotation that is refused."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A request whose namespace was found. Two pods with the same uid in different namespaces are different pods."""

    request: PodRequest
    netns_id: tuple[int, int]
    """(st_dev, st_ino): exact as long as somebody holds the namespace."""
    cookie: int
    """The kernel's number of the namespace, never reused until the machine boots again."""
    boot_id: str

    @property
    def uid(self) -> str:
        """The Kubernetes object's uid."""
        return self.request.uid

    def __str__(self) -> str:
        return str(self.request)

    @property
    def flow_labels(self) -> tuple[str, ...]:
        """The pod's labels as flows show them."""
        return _flow_labels(self.request.labels)


@lru_cache(1024)
def _flow_labels(labels: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(f"k8s:{key}={value}" for key, value in labels)
