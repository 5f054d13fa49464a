"""What is wrong with a manifest, in words for its author."""

from dataclasses import dataclass

from mesh.line import one_line


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing refused, or (a warning) one thing that will have no effect."""

    file: str
    document: int
    """Counted from 1 within its file; 0 where nothing could be read."""
    object: str
    """`Kind namespace/name`, as far as known."""
    field: str
    """Path, as `spec.rules[0].from`; empty for the whole object."""
    reason: str
    warning: bool = False

    def __str__(self) -> str:
        where = f"{self.file}, document {self.document}" if self.file else ""
        parts = [part for part in (where, self.object, self.field, self.reason) if part]
        return ("warning: " if self.warning else "") + one_line(": ".join(parts))
