"""What every object has: a kind, a name, labels; and how it is read and written."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Check, Cursor, Notes
from mesh.manifests.names import dns_label, dns_subdomain, label_key, label_value

_HARMLESS = (
    "uid",
    "resourceVersion",
    "generation",
    "selfLink",
    "managedFields",
    "finalizers",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)


@dataclass(frozen=True, slots=True)
class Metadata:
    """An object's name and marks."""

    name: str
    namespace: str = ""
    """Empty for cluster-scoped kinds."""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    created: str = ""
    """RFC 3339; empty where the source does not know."""
    owner: str = ""
    """`Kind/name` of the controller that made it; empty for what a person made."""

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        kind, _, name = self.owner.partition("/")
        owners = [{"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": True}] if self.owner else []
        return present(
            name=self.name,
            namespace=self.namespace,
            labels=self.labels,
            annotations=self.annotations,
            creationTimestamp=self.created,
            ownerReferences=owners,
        )


def present(**values: Any) -> dict[str, Any]:
    """Make a mapping of what is there: None, empty text and empty collections are left out, 0 and False stay."""
    return {key: value for key, value in values.items() if value is not None and value not in ("", (), [], {})}


def read_marks(cursor: Cursor) -> tuple[dict[str, str], dict[str, str]]:
    """Read labels and annotations."""
    return cursor.text_map("labels", label_key, label_value), cursor.text_map("annotations", label_key)


def read_selector(cursor: Cursor, key: str, *, expressions: bool = False) -> dict[str, str] | None:
    """Read a label selector's matchLabels; None where there is no selector.

    `expressions`: whether matchExpressions exist in this place (they have no effect then); else they are a mistake.
    """
    selector = cursor.child(key)
    if selector is None:
        return None
    labels = selector.text_map("matchLabels", label_key, label_value)
    selector.finish(ignored=("matchExpressions",) if expressions else ())
    return labels


@dataclass(frozen=True, slots=True)
class Object:
    """One Kubernetes object, validated and with its defaults filled in."""

    KIND: ClassVar[str]
    API_VERSIONS: ClassVar[tuple[str, ...]]
    """Accepted, newest first: the first is written."""
    NAMESPACED: ClassVar[bool] = True
    NAME: ClassVar[Check] = dns_subdomain

    metadata: Metadata

    @property
    def kind(self) -> str:
        """As `Pod`."""
        return self.KIND

    @property
    def name(self) -> str:
        """Unique within kind and namespace."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Empty for cluster-scoped kinds."""
        return self.metadata.namespace

    @property
    def labels(self) -> dict[str, str]:
        """The object's own labels."""
        return self.metadata.labels

    @property
    def title(self) -> str:
        """How people call it: `Kind namespace/name`, or `Kind name`."""
        return title(self.KIND, self.metadata.namespace, self.metadata.name)

    @property
    def file_name(self) -> str:
        """Where it is stored: `kind.namespace.name.yaml`."""
        return f"{self.KIND.lower()}.{self.metadata.namespace}.{self.metadata.name}.yaml"

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON: what `from_dict` and `parse` read back to an equal object."""
        return {"apiVersion": self.API_VERSIONS[0], "kind": self.KIND, "metadata": self.metadata.to_dict()} | self.body()

    def body(self) -> dict[str, Any]:
        """What stands beside apiVersion, kind and metadata."""
        return {}

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read what stands beside apiVersion, kind and metadata."""
        return cls(metadata)

    @classmethod
    def read_all(cls, cursor: Cursor) -> Self:
        """Read a whole object of this kind; mistakes are noted with the cursor."""
        cursor.text("apiVersion")
        cursor.text("kind")
        made = cls.read(cls._metadata(cursor), cursor)
        cursor.finish(harmless=("status",))
        return made

    @classmethod
    def _metadata(cls, cursor: Cursor) -> Metadata:
        fields = cursor.child("metadata", required=True)
        if fields is None:
            return Metadata("")
        namespace = fields.text("namespace", "default" if cls.NAMESPACED else "", check=dns_label)
        if namespace and not cls.NAMESPACED:
            fields.refuse("namespace", f"a {cls.KIND} has no namespace")
        if "generateName" in fields:
            fields.refuse("generateName", "names are not made up here: write metadata.name")
            fields.text("generateName")
        name = fields.text("name", required=True, check=cls.NAME)
        labels, annotations = read_marks(fields)
        made = Metadata(name, namespace, labels, annotations, fields.text("creationTimestamp"), _owner(fields))
        fields.finish(harmless=_HARMLESS)
        return made

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises: ValueError with every mistake.
        """
        if value.get("kind") != cls.KIND or value.get("apiVersion") not in cls.API_VERSIONS:
            raise ValueError(f"expected a {cls.KIND}, got {value.get('apiVersion')} {value.get('kind')}")
        notes = Notes()
        made = cls.read_all(Cursor(value, "", notes))
        if notes.refused:
            mistakes = "; ".join(f"{field}: {reason}" for field, reason, warning in notes.entries if not warning)
            raise ValueError(f"{made.title}: {mistakes}")
        return made


def title(kind: str, namespace: str, name: str) -> str:
    """How people call an object."""
    return f"{kind} {namespace}/{name}".strip() if namespace else f"{kind} {name}".strip()


def _owner(fields: Cursor) -> str:
    for reference in fields.children("ownerReferences"):
        if reference.flag("controller"):
            return f"{reference.text('kind')}/{reference.text('name')}"
    return ""
