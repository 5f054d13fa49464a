"""A control plane whose disk is full: what it knows and is told stays in force, and it says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.disk import fill, small_disk
from tests.lab.world import eventually

pytestmark = pytest.mark.kernel

NODE = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}"
SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: demo}, spec: {ports: [{port: 80}]}}"
SPEC = "spec: {nodeName: n1, containers: [{name: c, command: [c]}]}"
POD = f"{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: demo}}, {SPEC}}}"


def test_on_a_full_disk_it_goes_on_and_says_so(new_control: Callable[[], Any], tmp_path: Path) -> None:
    control = new_control()
    with small_disk(control.state / "control", "512k") as disk:
        manifests = tmp_path / "manifests"
        manifests.mkdir()
        control.start("--manifests", str(manifests))
        control.apply(f"{NODE}\n---\n{POD}")
        fill(disk)
        answer = control.apply("\n---\n".join(SERVICE % f"s{number}" for number in range(100)))
        control.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"], "uid": "u" * 200})
        assert len(answer.changes) == 100 and not answer.problems
        status = control.status()
        assert (status.services, status.workloads) == (100, 1)
        [problem] = status.problems
        assert problem.warning and problem.reason.startswith(f"{disk}/control.db cannot be written: ")
        assert problem.reason.endswith(": make room for it: a restart forgets what is new")
        with pytest.raises(grpc.RpcError, match="make room for it"):
            control.token("n1")
        (disk / "fill").unlink()
        eventually(lambda: not control.status().problems)
        services = sorted(next(control.watch("Service")).objects_json)
        control.stop()
        control.start("--manifests", str(manifests))
        assert sorted(next(control.watch("Service")).objects_json) == services
        assert "Traceback" not in control.log.read_text()
        control.stop()
