"""The tables of files, settings and metrics in ztunnel/README.md are whole."""

import re
from pathlib import Path

import pytest

from ztunnel.spelling import SETTINGS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PROXY = {path.stem: path.read_text() for path in (ROOT / "ztunnel").glob("*.py")}


def section(title: str) -> str:
    return (ROOT / "ztunnel" / "README.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_variable_is_in_the_table() -> None:
    table = section("Settings")
    readers = [
        PROXY[name] for name in ("config", "certificate_settings", "control_plane", "proxy_config", "tuning", "__main__")
    ]
    readers.append((ROOT / "wire" / "places.py").read_text())
    variables = {name for text in readers for name in re.findall(r'"([A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9])"', text)}
    assert len(variables) > 60 and {name for name in variables if not name.startswith("ISTIO_META_")} <= SETTINGS
    named = (variables | SETTINGS) - {name for name in SETTINGS if re.fullmatch("WEFT_.*_PER_NODE", name)}
    assert {name for name in named if f"`{name}" not in table} == set()
    for kind in ("CONNECTIONS", "STREAMS", "HANDSHAKES", "BUFFERED_BYTES"):
        assert f"`WEFT_{kind}_PER_POD`, `_PER_NODE`" in table


def test_every_metric_is_in_the_table() -> None:
    table = section("Metrics")
    counted = set(re.findall(r'"((?:weft|istio|workload_manager|process)_[a-z_]+)"', "".join(PROXY.values())))
    abbreviated = {"istio_tcp_connections_closed", "istio_tcp_connections_failed"}
    assert len(counted) > 30 and {name for name in counted if f"`{name}`" not in table} == abbreviated


def test_every_file_is_in_the_table() -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", section("Files")))
    assert {name for name in PROXY if not name.startswith("__")} - named == set()
