"""Deployments: a number of equal pods."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present, read_marks, read_selector
from mesh.manifests.pod import Pod, PodSpec

MAX_REPLICAS = 10_000
"""Far more than one machine's lab can run; a mistyped number must not become a flood of pods."""


@dataclass(frozen=True, slots=True)
class Deployment(Object):
    """A template, and how many pods to make of it."""

    KIND: ClassVar[str] = "Deployment"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("apps/v1",)

    replicas: int = 1
    selector: dict[str, str] = field(default_factory=dict)
    pod_labels: dict[str, str] = field(default_factory=dict)
    pod_annotations: dict[str, str] = field(default_factory=dict)
    spec: PodSpec = field(default_factory=PodSpec)
    """Of every pod."""

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec."""
        spec = cursor.child("spec", required=True)
        if spec is None:
            return cls(metadata)
        selector = read_selector(spec, "selector", expressions=True)
        if selector is None:
            spec.refuse("selector", "required")
        labels, annotations, pod = _read_template(spec)
        if any(labels.get(key) != value for key, value in (selector or {}).items()):
            spec.refuse("selector", "does not select the template's labels")
        if pod.restart_policy != "Always":
            spec.refuse("template.spec.restartPolicy", "must be Always in a Deployment")
        made = cls(metadata, spec.number("replicas", 0, MAX_REPLICAS, 1), selector or {}, labels, annotations, pod)
        ignored = ("strategy", "minReadySeconds", "paused", "progressDeadlineSeconds")
        spec.finish(ignored=ignored, harmless=("revisionHistoryLimit",))
        return made

    def body(self) -> dict[str, Any]:
        """Write spec."""
        marks = present(labels=self.pod_labels, annotations=self.pod_annotations)
        template = {"metadata": marks, "spec": self.spec.to_dict()}
        return {"spec": {"replicas": self.replicas, "selector": {"matchLabels": self.selector}, "template": template}}

    def pods(self) -> list[Pod]:
        """Make its pods: NAME-0, NAME-1 and so on, always the same."""
        owner = f"Deployment/{self.name}"
        return [
            Pod(
                Metadata(
                    f"{self.name}-{number}",
                    self.namespace,
                    dict(self.pod_labels),
                    dict(self.pod_annotations),
                    self.metadata.created,
                    owner,
                ),
                self.spec,
            )
            for number in range(self.replicas)
        ]


def _read_template(spec: Cursor) -> tuple[dict[str, str], dict[str, str], PodSpec]:
    template = spec.child("template")
    marks = template.child("metadata") if template else None
    labels, annotations = read_marks(marks) if marks else ({}, {})
    if marks is not None:
        marks.finish(harmless=("name", "namespace", "creationTimestamp"))
    pod = template.child("spec") if template else None
    if pod is None:
        spec.refuse("template.spec", "required")
        return labels, annotations, PodSpec()
    if template is not None:
        template.finish()
    return labels, annotations, PodSpec.read(pod)
