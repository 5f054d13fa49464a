"""L4 authorization policies as values. What they match: mesh.matching; what follows from that: mesh.policy_set."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from mesh.value import value
from mesh.workload import Network


class Scope(Enum):
    """Which workloads a policy applies to."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class Action(Enum):
    """What a matching policy does."""

    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """One way to compare a string; `presence` ignores `value`."""

    kind: Literal["exact", "prefix", "suffix", "presence"]
    value: str = ""

    def matches(self, text: str) -> bool:
        """Compare; presence means not empty."""
        if self.kind == "exact":
            return text == self.value
        if self.kind == "prefix":
            return text.startswith(self.value)
        if self.kind == "suffix":
            return text.endswith(self.value)
        return text != ""


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    """A service account of a namespace, in any trust domain."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Match:
    """Attributes that must all hold; an empty tuple asks nothing."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[Network, ...] = ()
    not_source_ips: tuple[Network, ...] = ()
    destination_ips: tuple[Network, ...] = ()
    not_destination_ips: tuple[Network, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True when no attribute asks anything."""
        return not (
            self.namespaces
            or self.not_namespaces
            or self.principals
            or self.not_principals
            or self.source_ips
            or self.not_source_ips
            or self.destination_ips
            or self.not_destination_ips
            or self.destination_ports
            or self.not_destination_ports
            or self.service_accounts
            or self.not_service_accounts
        )


Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


@value
class Policy:
    """One authorization policy as the data plane evaluates it."""

    namespace: str
    name: str
    scope: Scope
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    resource: str = ""
    """The name under which it came, where that differs from `namespace/name`."""

    @property
    def key(self) -> str:
        """The resource name, `namespace/name`: what workloads list, removals name and reasons say."""
        return self.resource or f"{self.namespace}/{self.name}"
