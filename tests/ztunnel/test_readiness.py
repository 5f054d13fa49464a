"""What is missing for readiness has Istio's names: scripts that read a real ztunnel's answer read weft's."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ztunnel.supervisor import Supervisor

pytestmark = pytest.mark.unit


def proxy(dedicated_to: tuple[str, str, str] | None = None, **parts: Any) -> Any:
    """As much of a proxy as is asked, ready but for `parts`."""
    return SimpleNamespace(
        **{
            "_end": asyncio.Event(),
            "workers": SimpleNamespace(alive=(0,), silent=lambda now: []),
            "xds": SimpleNamespace(ready=True, address="control:15012", status=SimpleNamespace(last_error="")),
            "view": SimpleNamespace(restored=False),
            "config": SimpleNamespace(dedicated_to=dedicated_to, zds_socket="/zds.sock"),
            "pods": SimpleNamespace(running=list),
            "zds": SimpleNamespace(connected=True, ready=True, last_error=""),
        }
        | parts
    )


def missing(made: Any) -> list[str]:
    return Supervisor.waits_for(made)


def test_whoever_has_all_is_ready() -> None:
    assert missing(proxy()) == []


def test_all_that_is_missing_is_named() -> None:
    xds = SimpleNamespace(ready=False, address="control:15012", status=SimpleNamespace(last_error="refused"))
    workers = SimpleNamespace(alive=(), silent=lambda now: ["worker 1, process 7, silent for 12 s: look"])
    zds = SimpleNamespace(connected=False, ready=False, last_error="no such file")
    made = proxy(xds=xds, workers=workers, zds=zds)
    made._end.set()
    assert missing(made) == [
        "proxy (its successor: this one is draining)",
        "proxy (data workers)",
        "proxy (worker 1, process 7, silent for 12 s: look)",
        "state manager (control plane control:15012: refused)",
        "workload proxy manager (agent /zds.sock: no such file)",
    ]


def test_who_has_a_state_from_the_disk_waits_for_no_control_plane() -> None:
    xds = SimpleNamespace(ready=False, address="control:15012", status=SimpleNamespace(last_error=""))
    assert missing(proxy(xds=xds)) == ["state manager (control plane control:15012: asked)"]
    assert missing(proxy(xds=xds, view=SimpleNamespace(restored=True))) == []


def test_the_pods_are_missing_until_the_agent_has_named_them() -> None:
    zds = SimpleNamespace(connected=True, ready=False, last_error="")
    assert missing(proxy(zds=zds)) == ["workload proxy manager (the agent's list of pods)"]
    assert missing(proxy(("shop", "web", "web"), zds=zds)) == ["proxy (its pod's listeners)"]
