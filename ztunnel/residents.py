"""Who lives on this node: whose certificates to have ready, and whose keys to keep."""

from collections.abc import Iterable

from mesh.identity import Identity
from mesh.workload import Service, TunnelProtocol, Workload


class Residents:
    """The identities of one node: of its workloads, as the control plane says, and of its pods, as the agent says."""

    def __init__(self, node: str, prefetches: bool = True) -> None:
        """Who has one identity alone fetches no others' certificates before they are asked for."""
        self._node = node
        self._prefetches = prefetches
        self._workloads: dict[str, tuple[Identity, bool]] = {}
        self._accounts: set[tuple[str, str]] = set()

    def update(self, upserts: Iterable[Workload | Service], removals: Iterable[str]) -> None:
        """Take in an update of the inventory."""
        for name in removals:
            self._workloads.pop(name, None)
        for one in upserts:
            if not isinstance(one, Workload):
                continue
            if one.node == self._node:
                meshed = one.protocol is TunnelProtocol.HBONE or one.native_tunnel
                self._workloads[one.uid] = (one.identity, meshed)
            else:
                self._workloads.pop(one.uid, None)

    def set_pods(self, accounts: Iterable[tuple[str, str]]) -> None:
        """Replace what is known of the pods: namespace and service account of each."""
        self._accounts = set(accounts)

    def meshed(self) -> set[Identity]:
        """The identities whose certificates will be needed."""
        return {identity for identity, meshed in self._workloads.values() if meshed and self._prefetches}

    def at_home(self, identity: Identity) -> bool:
        """Whether any workload or pod of this node has an identity."""
        account = (identity.namespace, identity.service_account)
        return account in self._accounts or any(identity == known for known, _ in self._workloads.values())
