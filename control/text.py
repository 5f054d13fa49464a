"""Objects as YAML text that reads back to the same values under YAML 1.1 and 1.2 alike. Pure."""

import re
from typing import Any

import yaml

from mesh.manifests import Object

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
"""Text that needs no quotes, unless the emitter knows it as a word (true, null); `1e5` or `0o7` would read as numbers."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes all text that another reader might take for something else; never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out each time."""
        return True


def _text(dumper: Any, value: str) -> Any:
    style = None if _PLAIN.fullmatch(value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def manifest_text(one: Object) -> str:
    """Write an object as a manifest."""
    return yaml.dump(one.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
