"""Istio's ProxyConfig: the file below PROXY_CONFIG below the variables, and what is wrong is named with its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel import proxy_config as module
from ztunnel.config import read_config
from ztunnel.proxy_config import proxy_config

pytestmark = pytest.mark.unit

MESH = """
accessLogFile: /dev/stdout
defaultConfig:
  discoveryAddress: mesh:15012
  proxyAdminPort: 1
  statsPort: 2
  concurrency: 3
  holdApplicationUntilProxyStarts: true
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: "false", OWNER: mesh}
"""


@pytest.fixture(autouse=True)
def mesh_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "MESH_FILE", tmp_path / "mesh")
    return tmp_path / "mesh"


def test_without_either_nothing_is_set() -> None:
    assert proxy_config({}) == {} == proxy_config({"PROXY_CONFIG": ""})
    for nothing in ("---", "null", "proxyMetadata:", "proxyMetadata: {}"):
        assert proxy_config({"PROXY_CONFIG": nothing}) == {}


def test_the_file_below_the_variable_below_the_settings_own_variables(mesh_file: Path) -> None:
    mesh_file.write_text(MESH)
    assert proxy_config({}) == {
        "XDS_ADDRESS": "mesh:15012", "ADMIN_PORT": "1", "STATS_PORT": "2", "ZTUNNEL_WORKER_THREADS": "3",
        "ISTIO_META_DNS_CAPTURE": "false", "ISTIO_META_OWNER": "mesh",
    }  # fmt: skip
    environment = {
        "NODE_NAME": "n1", "STATS_PORT": "4", "ISTIO_META_ISTIO_VERSION": "own",
        "PROXY_CONFIG": "discoveryAddress: own:99\nproxyMetadata:\n  ISTIO_META_OWNER: own",
    }  # fmt: skip
    config = read_config([], environment, 64)
    assert config.xds is not None and config.xds.address == "own:99" and config.ca.address == "localhost:15012"
    assert (config.admin_port, config.metrics_port, config.workers, config.dns_places) == (1, 4, 3, ())
    assert config.node_metadata == {"DNS_CAPTURE": "false", "OWNER": "own", "ISTIO_VERSION": "own"}
    assert read_config(["--control", "flag:1"], environment, 4).xds.address == "flag:1"  # type: ignore[union-attr]


def test_metadata_need_no_quotes(mesh_file: Path) -> None:
    text = "proxyMetadata: {DNS_CAPTURE: false, OWNER: True, LIMIT: 012, ISTIO_VERSION: 1.30, QUOTED: '1.30'}"
    said = {"DNS_CAPTURE": "false", "OWNER": "True", "LIMIT": "012", "ISTIO_VERSION": "1.30", "QUOTED": "1.30"}
    expected = {f"ISTIO_META_{key}": value for key, value in said.items()}
    assert proxy_config({"PROXY_CONFIG": text}) == expected, "a version is no number of which the last 0 is nothing"
    mesh_file.write_text("defaultConfig: {proxyMetadata: {ISTIO_VERSION: 1.20}}")
    assert proxy_config({}) == {"ISTIO_META_ISTIO_VERSION": "1.20"}
    assert read_config(["--node", "n1"], {"PROXY_CONFIG": text}, 1).dns_places == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "PROXY_CONFIG: not one YAML mapping: write KEY: VALUE"),
        ("a: [", "PROXY_CONFIG: line"),
        ("statsPort: many", "PROXY_CONFIG: statsPort: 'many' is not a number"),
        ("concurrency: true", "PROXY_CONFIG: concurrency: True is not a number"),
        ("discoveryAddress: 1", "PROXY_CONFIG: discoveryAddress: 1 is not a text"),
        ("proxyMetadata: [a]", "PROXY_CONFIG: proxyMetadata: not a mapping"),
        ("proxyMetadata: {DNS_CAPTURE: [true]}", "proxyMetadata: DNS_CAPTURE: [True] is not a text: write it in quotes"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        proxy_config({"PROXY_CONFIG": text})
    assert words in str(refusal.value)


def test_a_file_that_is_wrong_is_named(mesh_file: Path) -> None:
    mesh_file.write_text("defaultConfig: 1")
    with pytest.raises(ValueError, match="mesh: defaultConfig: not a mapping"):
        proxy_config({})
    mesh_file.unlink()
    mesh_file.mkdir()
    with pytest.raises(ValueError, match="mesh: cannot be read: "):
        proxy_config({})


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert all(isinstance(value, str) for value in proxy_config({"PROXY_CONFIG": text}).values())
    except ValueError as refusal:
        assert str(refusal)
