"""This node's pods, by everything that a report may name them with."""

from collections.abc import Iterable

from agent.pod import Pod
from mesh.workload import Address


class PodIndex:
    """Pods by netns cookie, by address and by namespace and name."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self.by_cookie: dict[int, Pod] = {}
        self.by_address: dict[Address, Pod] = {}
        self.by_name: dict[tuple[str, str], Pod] = {}
        for pod in pods:
            self.by_cookie[pod.cookie] = pod
            self.by_name[pod.request.namespace, pod.request.name] = pod
            for address in pod.request.addresses:
                self.by_address[address] = pod
