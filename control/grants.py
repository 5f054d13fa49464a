"""Which certificate a caller may have. Pure: the caller, what it asks for, and what runs where come in as values.

Status codes and words are Istio's where it has some, so that its own node proxy logs what its operators know; a reason
follows once the caller has proved to be a node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from control.credentials import node_spiffe_id
from mesh.identity import Identity

NOT_AUTHENTICATED = "request authenticate failure"
NOT_IMPERSONATED = "request impersonation authentication failure"


@dataclass(frozen=True, slots=True)
class Grant:
    """A certificate that may be made."""

    kind: Literal["workload", "node"]
    spiffe_id: str


class Refusal(NamedTuple):
    """Why there will be none; always UNAUTHENTICATED on the wire."""

    reason: str


@dataclass(frozen=True, slots=True)
class Grants:
    """The rules of one control plane."""

    trust_domain: str
    cluster: str
    has_node: Callable[[str], bool]
    runs_on: Callable[[str, str, str], bool]
    """(node, namespace, service account) -> whether a pod reported on that node runs under that account."""
    runs: Callable[[str, str], bool]
    """(namespace, service account) -> whether any reported pod runs under that account."""

    def decide(self, node: str | None, clusters: Sequence[str], impersonated: str | None) -> Grant | Refusal:
        """Grant what a node may have: its own credential, or the identity of a workload that it runs."""
        if node is None or not self.has_node(node):
            return Refusal(NOT_AUTHENTICATED)
        if any(one != self.cluster for one in clusters):
            return Refusal(NOT_AUTHENTICATED)
        if impersonated is None:
            return Grant("node", node_spiffe_id(self.trust_domain, node))
        if not clusters:
            return Refusal(NOT_IMPERSONATED)
        return self._impersonate(node, impersonated)

    def renew(self, identity: Identity, clusters: Sequence[str], impersonated: str | None) -> Grant | Refusal:
        """Grant what a workload's own certificate is good for: a further one of the same identity, while a pod has it."""
        if identity.trust_domain != self.trust_domain or any(one != self.cluster for one in clusters):
            return Refusal(NOT_AUTHENTICATED)
        if impersonated not in (None, str(identity)):
            return Refusal(f"{NOT_IMPERSONATED}: {identity} may have no identity but its own")
        if not self.runs(identity.namespace, identity.service_account):
            return Refusal(f"{NOT_AUTHENTICATED}: no pod has the identity {identity} any more")
        return Grant("workload", str(identity))

    def _impersonate(self, node: str, impersonated: str) -> Grant | Refusal:
        try:
            identity = Identity.parse(impersonated)
        except ValueError as error:
            return Refusal(f"{NOT_IMPERSONATED}: {error}")
        if identity.trust_domain != self.trust_domain:
            return Refusal(
                f"{NOT_IMPERSONATED}: {identity} is of trust domain {identity.trust_domain}, this mesh is {self.trust_domain}"
            )
        if not self.runs_on(node, identity.namespace, identity.service_account):
            return Refusal(
                f"{NOT_IMPERSONATED}: no pod with service account {identity.namespace}/{identity.service_account} "
                f"is reported on node {node}"
            )
        return Grant("workload", str(identity))
