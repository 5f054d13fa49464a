"""Data classes of which a large mesh makes tens of thousands in each process.

To mypy they are frozen, and nobody may change one. At run time they are plain: a frozen one sets its fields by calls, which for
those of a workload takes three times as long as all the rest of making it.
"""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True)
def value(made: _Class) -> _Class:
    """A data class with slots, compared and hashed by its fields."""
    return dataclass(slots=True, unsafe_hash=True)(made)  # type: ignore[return-value]
