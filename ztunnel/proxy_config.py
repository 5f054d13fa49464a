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
    for text, where, key in (
        (_file_text(), str(MESH_FILE), "defaultConfig"),
        (environment.get("PROXY_CONFIG"), "PROXY_CONFIG", ""),
    ):
        if text:
            found |= _variables(text, where, key)
    return found


def _file_text() -> str:
    try:
        return MESH_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ValueError(f"{MESH_FILE}: cannot be read: {error}") from error


def _mapping(text: str, where: str, typed: bool) -> Mapping[str, Any]:
    # Only here: nodes without it need neither the memory nor the time.
    from mesh.manifests.document import documents

    try:
        values = [value for _, value in documents(text, typed=typed)]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(values) > 1 or not isinstance(values[0] if values else None, dict | None):
        raise ValueError(f"{where}: not one YAML mapping: write KEY: VALUE, such as discoveryAddress: istiod:15012")
    return (values[0] if values else None) or {}


def _variables(text: str, where: str, key: str) -> dict[str, str]:
    """`key`: beneath which the settings are; empty: there is none."""
    config = _config(text, where, key, typed=True)
    said_at = f"{where}: {key}" if key else where
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError(f"{said_at}: not a mapping: write KEY: VALUE")
    found = dict(_settings(config, said_at))
    metadata = config.get("proxyMetadata")
    if metadata is not None:
        written = _config(text, where, key, typed=False)["proxyMetadata"]
        found |= _metadata(metadata, written, f"{said_at}: proxyMetadata")
    return found


def _config(text: str, where: str, key: str, typed: bool) -> Any:
    mesh = _mapping(text, where, typed)
    return mesh.get(key) if key else mesh


def _settings(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for key, (variable, kind, expected) in _SETTINGS.items():
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}: {key}: {value!r} is not {expected}")
        yield variable, str(value)


def _metadata(metadata: Any, written: Any, where: str) -> Iterator[tuple[str, str]]:
    """With or without the prefix that they have as variables; without quotes, too, as they are `written`: 1.30 is not 1.3."""
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: not a mapping: write KEY: VALUE")
    for key, value in metadata.items():
        if not isinstance(value, str | bool | int | float):
            raise ValueError(f'{where}: {key}: {value!r} is not a text: write it in quotes, like "true"')
        yield _META + key.removeprefix(_META), written[key]
