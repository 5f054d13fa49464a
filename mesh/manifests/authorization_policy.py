"""AuthorizationPolicy: who may connect to whom.

A mistake in one of these opens or closes a door, so nothing unknown is let through: a mistyped field is refused, never ignored.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Check, Cursor
from mesh.manifests.metadata import Metadata, Object, present, read_selector
from mesh.manifests.names import dns_label, dns_subdomain, network, port

DRY_RUN = "istio.io/dry-run"

_WHEN_KEYS = (
    "connection.sni",
    "destination.ip",
    "destination.port",
    "remote.ip",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.principal",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
)
_WHEN_PREFIXES = ("request.headers[", "request.auth.claims[", "experimental.")


def field_name(name: str) -> str:
    """Make the manifest's name of a field from ours: `not_principals` is notPrincipals."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def string_form(text: str) -> None:
    """Check a value to compare with: exact, `PREFIX*`, `*SUFFIX`, or `*` for any that is not empty."""
    if not text:
        raise ValueError("must not be empty: '*' means any")
    if "*" in text.removeprefix("*") and "*" in text.removesuffix("*"):
        raise ValueError(f"{text!r}: '*' stands alone, first or last")


def principal_form(text: str) -> None:
    """Check a principal: `TRUST_DOMAIN/ns/NAMESPACE/sa/NAME`, or a part of it with `*`."""
    string_form(text)
    if "://" in text:
        raise ValueError(f"{text!r}: principals are written without spiffe://")
    parts = text.split("/")
    if "*" not in text and (len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa" or not all(parts)):
        raise ValueError(f"{text!r} never matches: expected TRUST_DOMAIN/ns/NAMESPACE/sa/NAME")


def service_account_form(text: str) -> None:
    """Check a service account: `NAME` in the policy's namespace, or `NAMESPACE/NAME`."""
    namespace, slash, name = text.rpartition("/")
    if slash:
        dns_label(namespace)
    dns_subdomain(name)


_FORMS: dict[str, Check] = {
    "principals": principal_form,
    "namespaces": string_form,
    "serviceAccounts": service_account_form,
    "ipBlocks": network,
    "remoteIpBlocks": network,
    "ports": port,
}


def _read_lists(cursor: Cursor, names: list[str]) -> dict[str, tuple[str, ...]]:
    """Read lists of values by their field names, each in the form that its name (without `not`) calls for."""
    taken = {}
    before = cursor.mistakes
    for name in names:
        key = field_name(name)
        mistakes = cursor.mistakes
        plain = key.removeprefix("not")
        plain = plain[0].lower() + plain[1:]
        taken[name] = cursor.texts(key, _FORMS.get(plain, string_form))
        if key in cursor and not taken[name] and cursor.mistakes == mistakes:
            cursor.refuse(key, "an empty list: leave the field out, or name at least one value")
    cursor.finish()
    if not any(taken.values()) and cursor.mistakes == before:  # else a mistake that is named already left it empty
        cursor.refuse("", "at least one field is needed: an empty entry matches nothing")
    return taken


@dataclass(frozen=True, slots=True)
class Source:
    """Who connects: every list that is there must hold a match."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return _lists(self)


@dataclass(frozen=True, slots=True)
class Operation:
    """What is asked for: every list that is there must hold a match."""

    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return _lists(self)


def _lists(one: Source | Operation) -> dict[str, Any]:
    return present(**{field_name(field.name): list(getattr(one, field.name)) for field in fields(one)})


@dataclass(frozen=True, slots=True)
class Condition:
    """One more thing that must hold."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of when."""
        key = cursor.text("key", required=True)
        if key and key not in _WHEN_KEYS and not key.startswith(_WHEN_PREFIXES):
            cursor.refuse("key", f"{key!r} is no attribute to ask for")
        form = {
            "source.ip": network,
            "destination.ip": network,
            "remote.ip": network,
            "destination.port": port,
            "source.principal": principal_form,
            "source.serviceAccount": service_account_form,
        }.get(key, string_form)
        made = cls(key, cursor.texts("values", form), cursor.texts("notValues", form))
        if not made.values and not made.not_values:
            cursor.refuse("", "needs values or notValues")
        cursor.finish()
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(key=self.key, values=list(self.values), notValues=list(self.not_values))


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One of `sources` and one of `operations` and every condition; what is empty asks nothing."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of rules."""
        sources, operations = [], []
        for entry in cursor.children("from"):
            source = entry.child("source", required=True)
            if source is not None:
                sources.append(Source(**_read_lists(source, [field.name for field in fields(Source)])))
            entry.finish()
        for entry in cursor.children("to"):
            operation = entry.child("operation", required=True)
            if operation is not None:
                operations.append(Operation(**_read_lists(operation, [field.name for field in fields(Operation)])))
            entry.finish()
        made = cls(tuple(sources), tuple(operations), tuple(Condition.read(entry) for entry in cursor.children("when")))
        for key, entries in (("from", made.sources), ("to", made.operations), ("when", made.conditions)):
            if key in cursor and not entries:
                cursor.refuse(key, "an empty list: leave the field out to ask nothing")
        cursor.finish()
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(
            **{
                "from": [{"source": source.to_dict()} for source in self.sources],
                "to": [{"operation": operation.to_dict()} for operation in self.operations],
                "when": [condition.to_dict() for condition in self.conditions],
            }
        )


@dataclass(frozen=True, slots=True)
class TargetReference:
    """The object that a waypoint's policy is attached to."""

    kind: str
    name: str
    group: str = ""

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one entry of targetRefs."""
        made = cls(
            cursor.text("kind", required=True), cursor.text("name", required=True, check=dns_subdomain), cursor.text("group")
        )
        if "namespace" in cursor:
            cursor.refuse("namespace", "a policy is attached within its own namespace only")
        cursor.finish(harmless=("namespace",))
        return made

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        return present(group=self.group, kind=self.kind, name=self.name)


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy(Object):
    """Rules for connections to the pods it selects."""

    KIND: ClassVar[str] = "AuthorizationPolicy"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("security.istio.io/v1", "security.istio.io/v1beta1")

    action: str = "ALLOW"
    """ALLOW, DENY, AUDIT or CUSTOM."""
    rules: tuple[PolicyRule, ...] = ()
    """None at all: matches nothing (so an ALLOW policy then denies everything)."""
    selector: dict[str, str] | None = None
    """None or empty: every pod of the namespace (in the root namespace: of the mesh)."""
    targets: tuple[TargetReference, ...] = ()
    provider: str = ""

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec; without one, an ALLOW policy that matches nothing."""
        if cls(metadata).dry_run is None:
            cursor.refuse(f"metadata.annotations[{DRY_RUN}]", 'expected "true" or "false"')
        spec = cursor.child("spec")
        if spec is None:
            return cls(metadata)
        references = spec.children("targetRefs")
        one = spec.child("targetRef")
        provider = spec.child("provider")
        made = cls(
            metadata,
            action=spec.choice("action", ("ALLOW", "DENY", "AUDIT", "CUSTOM"), "ALLOW"),
            rules=tuple(PolicyRule.read(entry) for entry in spec.children("rules")),
            selector=read_selector(spec, "selector"),
            targets=tuple(TargetReference.read(entry) for entry in (*references, *([one] if one else []))),
            provider=provider.text("name", required=True) if provider else "",
        )
        if made.selector is not None and made.targets:
            spec.refuse("targetRefs", "either selector or targetRefs")
        if (made.action == "CUSTOM") != bool(made.provider):
            spec.refuse("provider", "goes with action CUSTOM, and only with it")
        if made.action == "DENY" and not made.rules:
            spec.warn("rules", "a DENY policy without rules has no effect")
        spec.finish()
        return made

    @property
    def dry_run(self) -> bool | None:
        """Whether it only watches; None for an annotation that says neither true nor false."""
        return {"true": True, "false": False, "": False}.get(self.metadata.annotations.get(DRY_RUN, "").lower())

    def body(self) -> dict[str, Any]:
        """Write spec."""
        spec: dict[str, Any] = {"action": self.action}
        if self.selector is not None:
            spec["selector"] = {"matchLabels": self.selector}
        return {
            "spec": spec
            | present(
                targetRefs=[target.to_dict() for target in self.targets],
                provider={"name": self.provider} if self.provider else None,
                rules=[rule.to_dict() for rule in self.rules],
            )
        }
