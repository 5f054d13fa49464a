"""Istio's ProxyConfig, from a mesh-wide file and from a variable: its few settings that concern this proxy become variables.

Of three places the later ones win: `defaultConfig` of the file, PROXY_CONFIG, the variables themselves. Other settings are for
other proxies, and are left alone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MESH_FILE = Path("./etc/istio/config/mesh")
"""Where Istio's agents mount it, beneath the working folder."""
_META = "ISTIO_META_"
_SETTINGS = {
    "discoveryAddress": ("XDS_ADDRESS", str, "a text"),
    "proxyAdminPort": ("ADMIN_PORT", int, "a number"),
    "statsPort": ("STATS_PORT", int, "a number"),
    "concurrency": ("ZTUNNEL_WORKER_THREADS", int, "a number"),
}


def proxy_config(environment: Mapping[str, str]) -> dict[str, str]:
    """What file and PROXY_CONFIG set, as variables. Raises: ValueError naming the place, the key, the reason and the mend."""
    found: dict[str, str] = {}
    text = _file_text()
    if text:
        mesh = _mapping(text, str(MESH_FILE))
        found |= _variables(mesh.get("defaultConfig"), f"{MESH_FILE}: defaultConfig")
    if environment.get("PROXY_CONFIG"):
        found |= _variables(_mapping(environment["PROXY_CONFIG"], "PROXY_CONFIG"), "PROXY_CONFIG")
    return found


def _file_text() -> str:
    try:
        return MESH_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ValueError(f"{MESH_FILE}: cannot be read: {error}") from error


def _mapping(text: str, where: str) -> Mapping[str, Any]:
    # Only here: nodes without it need neither the memory nor the time.
    from mesh.manifests.document import documents

    try:
        values = [value for _, value in documents(text)]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(values) > 1 or not isinstance(values[0] if values else None, dict | None):
        raise ValueError(f"{where}: not one YAML mapping: write KEY: VALUE, such as discoveryAddress: istiod:15012")
    return (values[0] if values else None) or {}


def _variables(config: Any, where: str) -> dict[str, str]:
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError(f"{where}: not a mapping: write KEY: VALUE")
    return dict(_settings(config, where)) | dict(_metadata(config.get("proxyMetadata"), f"{where}: proxyMetadata"))


def _settings(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for key, (variable, kind, expected) in _SETTINGS.items():
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}: {key}: {value!r} is not {expected}")
        yield variable, str(value)


def _metadata(metadata: Any, where: str) -> Iterator[tuple[str, str]]:
    """With or without the prefix that they have as variables; without quotes, as Istio's ztunnel takes them, too."""
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: not a mapping: write KEY: VALUE")
    for key, value in metadata.items():
        if not isinstance(value, str | bool | int | float):
            raise ValueError(f'{where}: {key}: {value!r} is not a text: write it in quotes, like "true"')
        yield _META + key.removeprefix(_META), str(value).lower() if isinstance(value, bool) else str(value)
