"""Who lives on this node: whose certificates to have ready, and whose keys to keep."""

from collections import Counter
from collections.abc import Iterable

from mesh.identity import Identity
from mesh.workload import Service, TunnelProtocol, Workload

_Kind = tuple[Identity, bool]
"""An identity, and whether its workload is in the mesh."""


class Residents:
    """The identities of one node: of its workloads, as the control plane says, and of its pods, as the agent says."""

    def __init__(self, node: str, prefetches: bool = True) -> None:
        """Who has one identity alone fetches no others' certificates before they are asked for."""
        self._node = node
        self._prefetches = prefetches
        self._workloads: dict[str, _Kind] = {}
        self._kinds: dict[_Kind, _Kind] = {}
        """One object for all workloads of a kind."""
        self._known: Counter[Identity] = Counter()
        """How many workloads have an identity."""
        self._meshed: Counter[Identity] = Counter()
        self._accounts: set[tuple[str, str]] = set()

    def update(self, upserts: Iterable[Workload | Service], removals: Iterable[str]) -> None:
        """Take in an update of the inventory."""
        for name in removals:
            self._leave(name)
        for one in upserts:
            if isinstance(one, Workload):
                self._leave(one.uid)
                if one.node == self._node:
                    self._arrive(one)

    def _arrive(self, workload: Workload) -> None:
        identity = workload.identity
        meshed = workload.protocol is TunnelProtocol.HBONE or workload.native_tunnel
        self._workloads[workload.uid] = self._kinds.setdefault((identity, meshed), (identity, meshed))
        self._known[identity] += 1
        self._meshed[identity] += meshed

    def _leave(self, uid: str) -> None:
        if uid in self._workloads:
            identity, meshed = self._workloads.pop(uid)
            self._known[identity] -= 1
            self._meshed[identity] -= meshed
            if not self._known[identity]:
                del self._known[identity], self._meshed[identity]
                for kind in ((identity, True), (identity, False)):
                    self._kinds.pop(kind, None)

    def set_pods(self, accounts: Iterable[tuple[str, str]]) -> None:
        """Replace what is known of the pods: namespace and service account of each."""
        self._accounts = set(accounts)

    def meshed(self) -> set[Identity]:
        """The identities whose certificates will be needed."""
        return {identity for identity, count in self._meshed.items() if count and self._prefetches}

    def at_home(self, identity: Identity) -> bool:
        """Whether any workload or pod of this node has an identity."""
        return (identity.namespace, identity.service_account) in self._accounts or identity in self._known
