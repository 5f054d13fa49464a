"""Which services select whom, by labels. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from control.services import AnyService
from mesh.manifests import ServiceEntry, selects

_Label = tuple[str, str, str]
"""Namespace, key and value."""


@dataclass(slots=True)
class Selection:
    """The services that select anybody."""

    _candidates: dict[_Label, dict[str, AnyService]] = field(default_factory=dict)
    """By their namespace and one label that they select, then by title."""

    def add(self, service: AnyService) -> None:
        """Take one in."""
        for label in _first_label(service):
            self._candidates.setdefault(label, {})[service.title] = service

    def drop(self, service: AnyService) -> None:
        """Forget one that was taken in."""
        for label in _first_label(service):
            del self._candidates[label][service.title]
            if not self._candidates[label]:
                del self._candidates[label]

    def of(self, namespace: str, labels: Mapping[str, str]) -> list[AnyService]:
        """The services that somebody with these labels stands behind, by title."""
        found = ((namespace, key, value) for key, value in labels.items())
        candidates = {title: one for label in found for title, one in self._candidates.get(label, {}).items()}
        return [candidates[title] for title in sorted(candidates) if selects(candidates[title].selector, labels)]


def _first_label(service: AnyService) -> list[_Label]:
    """One label that a service selects; empty where it selects nothing, or nobody is to know of it."""
    if isinstance(service, ServiceEntry) and not service.is_told:
        return []
    return [(service.namespace, *pair) for pair in sorted(service.selector.items())[:1]]
