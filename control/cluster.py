"""The state of the mesh: what sources and reporters say goes in, is checked and remembered, and reaches whoever listens.

The one writer of the index, of the feed and of the database's addresses and reports. Everything here runs in the event loop
and finishes within one call, so nobody ever sees half of a change.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from control.catalogue import is_refused, unexpected
from control.examination import Addresses, Examination
from control.feed import Feed
from control.index import TYPE_URLS, Index
from control.notice import Notice
from control.reports import Changes, PodReport, Reports
from control.store import Store, StoreError
from control.tokens import Tokens
from control.workloads import MeshNames
from mesh.manifests import Object, Problem, Service
from mesh.workload import Address, Network

NOT_LOADED = "the mesh has no valid set of manifests yet: see weft status"
RETRY_S = 5.0
MAX_SHOWN = 20
"""Pods named in one message."""
_Sort = Literal["addresses", "reports"]
_log = logging.getLogger("control.cluster")


class NotTaken(Exception):
    """A set of objects without a problem ended in a mistake of ours: which objects, and which mistake. What was is in force."""


class Cluster:
    """One mesh."""

    def __init__(self, names: MeshNames, ranges: Sequence[Network], store: Store, tokens: Tokens) -> None:
        """Take up the addresses and reports of the process before; objects come with the first `replace_objects`."""
        self.names = names
        self.feed = Feed.of(TYPE_URLS)
        self.objects_changed = Notice()
        self.objects: dict[str, Object] = {}
        self.revision = 0
        self.is_loaded = False
        """Whether there ever was a valid set of objects: before, nobody is told anything."""
        self.misplaced: dict[str, dict[tuple[str, str], str]] = {}
        """By reporter: pods that were not taken, with the reason."""
        self._unkept: dict[_Sort, str] = {}
        """Why the database lacks what is new of a sort, which is in force all the same."""
        self._ranges = ranges
        self._kept_addresses: Mapping[str, tuple[Address, ...]] = store.addresses()
        self._examination = Examination(names.root_namespace, ranges, self._kept_addresses, names.cluster_domain)
        self._store = store
        self._tokens = tokens
        self._reports = Reports.of(store.reports())
        self._json: dict[str, tuple[Object, str]] = {}
        self.index = self._new_index()
        self._half_made = False
        """The index: a change of it broke off, or nobody was told of it yet."""

    def check(self, objects: Iterable[Object]) -> list[Problem]:
        """What is wrong with a set of objects as a whole, and what of it will have no effect; nothing is changed."""
        return self._examination.examine(objects).problems

    def replace_objects(self, objects: Sequence[Object]) -> list[Problem]:
        """Make a whole set of objects current, unless it has problems that are no warnings; returns all problems.

        Raises: NotTaken.
        """
        findings = self._examination.examine(objects)
        if is_refused(findings.problems):
            return findings.problems
        addresses = findings.addresses
        self._index_objects(objects, addresses)
        self._examination.held = addresses
        self._keep_addresses()
        self.objects = {one.title: one for one in objects}
        self._name_reports()
        for node in self._tokens.keep_only(self.index.nodes):
            _log.info("node removed: node=%s: its tokens are no longer valid", node)
        self._publish()
        self.is_loaded = True
        self.objects_changed.give()
        return findings.problems

    def _index_objects(self, objects: Sequence[Object], addresses: Addresses) -> None:
        self._mend_index()
        self._half_made = True
        try:
            self.index.replace_objects(objects, addresses)
        except Exception as error:
            self._mend_index()
            doubtful = not self.is_loaded and not isinstance(error, MemoryError)
            reported = ", ".join(self._wrongly_reported(objects, addresses)) if doubtful else ""
            if reported:
                mend = "weft delete these, and apply them again when weft status shows no problem"
                raise NotTaken(f"{unexpected(error, f'{reported}: what was reported cannot be taken in')}: {mend}") from error
            raise NotTaken(f"{_differing(self.objects, objects)}: {unexpected(error, 'cannot be taken in')}") from error

    def _wrongly_reported(self, objects: Iterable[Object], addresses: Addresses) -> list[str]:
        """The pods whose reports, kept from before this start, alone lead to a mistake of ours: all objects are new then."""
        index = Index(self.names, self._ranges)
        found: list[str] = []
        with suppress(Exception):  # where objects do without any report; memory that ends says nothing of whom it meets
            index.replace_objects(objects, addresses)
            for namespace, name in self._reports.pods:
                try:
                    index.replace_reports(self._reports.pods, [(namespace, name)])
                except MemoryError:
                    return []
                except Exception:
                    found.append(f"Pod {namespace}/{name}")
        return found[:MAX_SHOWN]

    def _mend_index(self) -> None:
        """Have the state before in the place of a half-made one, which may lack policies: nobody must be told that."""
        if self._half_made:
            self.index = self._new_index()
            if self.is_loaded:
                self.index.replace_objects(self.objects.values(), self._examination.held)
            self._half_made = False

    def _new_index(self) -> Index:
        made = Index(self.names, self._ranges)
        made.replace_reports(self._reports.pods, ())
        return made

    def _keep_addresses(self) -> None:
        kept, addresses = self._kept_addresses, self._examination.held
        wanted = {name: addresses.get(name, ()) for name in addresses.keys() | kept.keys()}
        changes = {name: several for name, several in wanted.items() if several != kept.get(name, ())}
        if self._keep("addresses", lambda: self._store.replace_addresses(changes)):
            self._kept_addresses = addresses

    def _keep_reports(self, changes: Changes | None = None) -> None:
        """Write changes, or all of them where some before were not written."""
        if changes is None or "reports" in self._unkept:
            self._keep("reports", lambda: self._store.replace_all_reports(self._reports.pods.values()))
        else:
            self._keep("reports", lambda: self._store.replace_reports(changes.upserts, changes.removals))

    def _keep(self, sort: _Sort, write: Callable[[], None]) -> bool:
        """Whether the database took it. What it does not take is in force, and forgotten with this process."""
        try:
            write()
        except StoreError as error:
            if not self._unkept:
                _log.error("%s: what is new is in force, but a restart forgets it", error)
            self._unkept[sort] = str(error)
            return False
        self._unkept.pop(sort, None)
        return True

    @property
    def unkept(self) -> str:
        """Why the database does not take what is new; empty while it has all."""
        return next(iter(self._unkept.values()), "")

    def keep(self) -> None:
        """Have the database take what it did not."""
        if "addresses" in self._unkept:
            self._keep_addresses()
        if "reports" in self._unkept:
            self._keep_reports()

    async def keep_trying(self) -> None:
        """The same, for ever."""
        while True:
            await asyncio.sleep(RETRY_S)
            self.keep()

    def report(self, reporter: str, reports: Sequence[PodReport]) -> dict[tuple[str, str], str]:
        """Make a reporter's whole list current, but for pods that cannot be where they are said to be: returns those."""
        if self._half_made:
            self._mend_index()
            self._publish()
        ranges = {name: node.pod_cidrs for name, node in self.index.nodes.items()}
        sharing = {key for key, pod in self.index.pods.items() if pod.spec.host_network}
        misplaced = self._reports.misplaced(reporter, reports, ranges, sharing)
        if misplaced != self.misplaced.get(reporter, {}):
            for (namespace, name), reason in list(misplaced.items())[:MAX_SHOWN]:
                _log.warning("pod not taken: pod=%s/%s reporter=%s: %s", namespace, name, reporter, reason)
        self.misplaced.pop(reporter, None)
        if misplaced:
            self.misplaced[reporter] = misplaced
        self._take(self._reports.changes(reporter, [one for one in reports if one.key not in misplaced]))
        return misplaced

    def _take(self, changes: Changes) -> None:
        if not changes.upserts and not changes.removals:
            return
        named = replace(changes, upserts=tuple(map(self._named, changes.upserts)))
        before = self._reports.undoing(named)
        self._half_made = True
        self._reports.apply(named)
        try:
            self.index.replace_reports(self._reports.pods, named.keys)
        except Exception:  # who reported reads so, and is to find it new when he tries again
            self._reports.apply(before)
            self._mend_index()
            raise
        self._keep_reports(named)
        self._publish()

    def _named(self, report: PodReport) -> PodReport:
        """The report with its pod's service account: that under which this uid was first known, whatever is written since."""
        known, pod = self._reports.pods.get(report.key), self.index.pods.get(report.key)
        if known is not None and known.uid == report.uid and known.service_account:
            return replace(report, service_account=known.service_account)
        return replace(report, service_account=pod.spec.service_account) if pod is not None else report

    def _name_reports(self) -> None:
        """Note the service accounts of pods that were reported before they were written."""
        unnamed = [one for one in self._reports.pods.values() if not one.service_account and one.key in self.index.pods]
        if unnamed:
            named = Changes(tuple(map(self._named, unnamed)), ())
            self._reports.apply(named)
            self._keep_reports(named)

    def has_node(self, name: str) -> bool:
        """Whether a node is an object of the mesh."""
        return name in self.index.nodes

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """As the index says, which may be another one by then."""
        return self.index.runs_on(node, namespace, service_account)

    def runs(self, namespace: str, service_account: str) -> bool:
        """The same."""
        return self.index.runs(namespace, service_account)

    def objects_json(self, kinds: Sequence[str]) -> Iterator[str]:
        """The objects of some kinds (of all, if none is named) as Kubernetes JSON, services with their addresses."""
        for title, one in self.objects.items():
            if not kinds or one.kind in kinds:
                yield self._to_json(title, self._completed(one))

    def _completed(self, one: Object) -> Object:
        if not isinstance(one, Service):
            return one
        addresses = self._examination.held.get(f"{one.namespace}/{one.name}", ())
        return replace(one, cluster_ips=addresses) if addresses != one.cluster_ips else one

    def _to_json(self, title: str, one: Object) -> str:
        known = self._json.get(title)
        if known is None or (known[0] is not one and known[0] != one):
            known = self._json[title] = (one, json.dumps(one.to_dict()))
        return known[1]

    def _publish(self) -> None:
        self.revision += 1
        for gone in self._json.keys() - self.objects.keys():
            del self._json[gone]
        resources = self.index.take()
        if resources:
            self.feed.publish(resources)
        self._half_made = False


def _differing(before: Mapping[str, Object], after: Iterable[Object]) -> str:
    """Which objects are new, others or gone, for a message."""
    current = {one.title: one for one in after}
    titles = [title for title, one in current.items() if before.get(title) != one] + [*before.keys() - current.keys()]
    more = f" and {len(titles) - MAX_SHOWN} more" if len(titles) > MAX_SHOWN else ""
    return ", ".join(titles[:MAX_SHOWN]) + more
