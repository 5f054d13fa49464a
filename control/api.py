"""`weft.control.Control`, on a unix socket that only root may use: thin over the source, the cluster and the tokens."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from control.abort import abort
from control.cluster import NOT_LOADED, Cluster
from control.describe import describe
from control.discovery import DiscoveryService
from control.refusals import Refusals
from control.reports import PodReport, malformed, read_address
from control.source import FolderSource, Outcome
from control.store import StoreError
from control.tokens import TOKEN_BYTES, Tokens
from control.trust import Trust
from mesh.line import as_text
from mesh.manifests import Problem
from mesh.proto import control_pb2 as wire
from mesh.proto import control_pb2_grpc
from mesh.version import VERSION

MAX_REQUEST_BYTES = 64 << 20
WATCH_DELAY_S = 0.003
"""Changes within this are one set."""
MAX_SHOWN = 20
"""Pods named in one refusal."""


@dataclass(slots=True)
class ControlService(control_pb2_grpc.ControlServicer):  # type: ignore[misc]
    """What operators, the lab and the commands ask of control."""

    source: FolderSource
    cluster: Cluster
    tokens: Tokens
    trust: Trust
    discovery: DiscoveryService
    refusals: Refusals
    _started_s: int = field(default_factory=lambda: int(time.time()))

    async def Apply(self, request: wire.ApplyRequest, context: grpc.aio.ServicerContext) -> wire.ApplyResponse:
        """Add or change objects."""
        return _response(await self.source.apply(_files(request.files), request.dry_run))

    async def Delete(self, request: wire.DeleteRequest, context: grpc.aio.ServicerContext) -> wire.ApplyResponse:
        """Remove objects."""
        return _response(await self.source.delete(_files(request.files), request.dry_run))

    async def WatchObjects(
        self, request: wire.WatchObjectsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[wire.ObjectSet]:
        """Send all objects now and after every change; a slow reader gets the newest set, not every one."""
        await self._require_objects(context)
        changed = asyncio.Event()
        silence = self.cluster.objects_changed.listen(changed.set)
        try:
            while True:
                changed.clear()
                revision, objects = self.cluster.revision, list(self.cluster.objects_json(request.kinds))
                yield wire.ObjectSet(revision=revision, objects_json=objects)
                await changed.wait()
                await asyncio.sleep(WATCH_DELAY_S)
        finally:
            silence()

    async def ReportPods(self, request: wire.ReportPodsRequest, context: grpc.aio.ServicerContext) -> wire.ReportPodsResponse:
        """Take in what a reporter runs: its whole list.

        INVALID_ARGUMENT: it is no such list, nothing was taken. FAILED_PRECONDITION: some pods cannot be where they are said
        to be; they were left out, the others taken.
        """
        await self._require_objects(context)
        try:
            reports = [_report(request.reporter, pod) for pod in request.pods]
            problem = malformed(reports) if 0 < len(request.reporter) <= 253 else "reporter: 1 to 253 characters"
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        misplaced = self.cluster.report(request.reporter, reports)
        if misplaced:
            shown = [f"pod {'/'.join(key)}: {reason}" for key, reason in list(misplaced.items())[:MAX_SHOWN]]
            more = f"; and {len(misplaced) - MAX_SHOWN} more" if len(misplaced) > MAX_SHOWN else ""
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, f"not taken: {'; '.join(shown)}{more}")
        return wire.ReportPodsResponse(revision=self.cluster.revision)

    async def NodeToken(self, request: wire.NodeTokenRequest, context: grpc.aio.ServicerContext) -> wire.NodeTokenResponse:
        """Issue a further token for a node."""
        await self._require_objects(context)
        if not self.cluster.has_node(request.node):
            reason = f"Node {request.node} is no object of the mesh: apply it first"
            await abort(context, grpc.StatusCode.NOT_FOUND, reason)
        try:
            token = self.tokens.issue(request.node, secrets.token_bytes(TOKEN_BYTES))
        except StoreError as error:
            await abort(context, grpc.StatusCode.INTERNAL, str(error))
        return wire.NodeTokenResponse(token=token, root_pem=self.trust.bundle_pem)

    async def RotateRoot(self, request: wire.RotateRootRequest, context: grpc.aio.ServicerContext) -> wire.RootRotation:
        """Begin to replace the root certificate."""
        try:
            self.trust.rotate(request.overlap_s)
        except ValueError as error:
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except OSError as error:
            await abort(context, grpc.StatusCode.INTERNAL, f"the successor cannot be written: {error}")
        return _rotation(self.trust)

    async def Status(self, request: wire.StatusRequest, context: grpc.aio.ServicerContext) -> wire.StatusResponse:
        """Say how it is."""
        index = self.cluster.index
        return wire.StatusResponse(
            version=VERSION,
            revision=self.cluster.revision,
            started_unix_s=self._started_s,
            objects=len(self.cluster.objects),
            workloads=len(index.workloads.nouns),
            services=len(index.services.nouns),
            policies=len(index.policies.nouns),
            nodes=[
                wire.ConnectedNode(
                    node=stream.node,
                    client=stream.client,
                    synced_resources=stream.server.sent,
                    acked=stream.is_in_step(self.cluster.feed.snapshots),
                    last_nack=stream.last_nack,
                )
                for stream in self.discovery.streams()
            ],
            problems=[*map(_problem, self.source.problems), *self._misplaced(), *self._unkept()],
            root_expires_unix_s=int(self.trust.signer.certificate.not_valid_after_utc.timestamp()),
            rotation=_rotation(self.trust),
            refused_calls=self.refusals.total,
        )

    async def _require_objects(self, context: grpc.aio.ServicerContext) -> None:
        """Without a valid set of manifests there is no mesh to speak of, which is not the same as an empty one."""
        if not self.cluster.is_loaded:
            await abort(context, grpc.StatusCode.UNAVAILABLE, NOT_LOADED)

    def _misplaced(self) -> Iterable[wire.Problem]:
        for pods in self.cluster.misplaced.values():
            for (namespace, name), reason in list(pods.items())[:MAX_SHOWN]:
                yield wire.Problem(object=f"Pod {namespace}/{name}", reason=f"its report was not taken: {reason}")

    def _unkept(self) -> Iterable[wire.Problem]:
        if self.cluster.unkept:
            yield wire.Problem(reason=f"{self.cluster.unkept}: a restart forgets what is new", warning=True)

    async def Describe(self, request: wire.DescribeRequest, context: grpc.aio.ServicerContext) -> wire.DescribeResponse:
        """Show what proxies are told."""
        try:
            found = [json.dumps(one) for one in describe(self.cluster.index, request.kind)]
        except ValueError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return wire.DescribeResponse(resources_json=found)


def _rotation(trust: Trust) -> wire.RootRotation:
    return wire.RootRotation(
        phase=trust.roots.phase.value, until_unix_s=int(trust.roots.next_at_s or 0), bundle_pem=trust.bundle_pem
    )


def _files(files: Sequence[wire.ManifestFile]) -> dict[str, str]:
    """By name; a name that occurs again (standard input twice) gets a number."""
    texts: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for file in files:
        name = file.name
        while name in texts:
            numbers[file.name] += 1
            name = f"{file.name} ({numbers[file.name] + 1})"
        texts[name] = file.yaml
    return texts


def _report(reporter: str, pod: wire.PodReport) -> PodReport:
    try:
        addresses = tuple(map(read_address, pod.addresses))
    except ValueError as error:
        raise ValueError(f"pod {pod.namespace}/{pod.name}: {error}") from error
    return PodReport(
        namespace=pod.namespace,
        name=pod.name,
        reporter=reporter,
        uid=pod.uid,
        node=pod.node,
        addresses=addresses,
        ready=pod.ready,
        enrolled=pod.enrolled,
        phase=pod.phase or "Pending",
    )


def _problem(problem: Problem) -> wire.Problem:
    return wire.Problem(
        file=as_text(problem.file),
        document=problem.document,
        object=problem.object,
        field=problem.field,
        reason=as_text(problem.reason),
        warning=problem.warning,
    )


def _response(outcome: Outcome) -> wire.ApplyResponse:
    return wire.ApplyResponse(
        changes=[wire.ObjectChange(object=title, change=change) for title, change in outcome.changes],
        problems=map(_problem, outcome.problems),
    )
