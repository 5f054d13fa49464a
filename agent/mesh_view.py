"""The mesh as control tells it, for names in flows and for policy on connections that no proxy sees.

What was last known is kept on disk: an agent that starts while control is away knows it still. Of an update all is taken in or
nothing: control is asked for the difference to what was known before, so a half of it would stay for good, and may lack a DENY.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from agent.agent_events import AgentEvents
from agent.pod import PodRequest
from mesh.delta import Resource
from mesh.domains import TRUST_DOMAIN
from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.matching import Connection
from mesh.policy import Policy
from mesh.policy_set import Verdict, evaluate
from mesh.policy_store import PolicyStore
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, decode_address, decode_all, decode_authorization
from mesh.workload import Address, Service, Workload
from wire.memory import collector_at_rest, give_back
from wire.mesh_cache import MeshCache
from wire.xds import Update

TYPES = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
_LARGE = 1024
"""Resources of an update from which on the collector rests."""


class MeshView:
    """Inventory and policies, kept up to date by an XdsClient."""

    def __init__(self, network: str, events: AgentEvents, cache: MeshCache) -> None:
        self.network = network
        self._cache = cache
        self.inventory = Inventory()
        self.policies = PolicyStore()
        self._events = events
        self._readers: list[Callable[[], None]] = []
        self._before: tuple[list[Workload | Service], list[Policy]] | None = None
        """What was known before an update that broke off, where that could not be undone yet: what is here is a half."""

    def on_change(self, reader: Callable[[], None]) -> None:
        """Have `reader` called after every update."""
        self._readers.append(reader)

    def restore(self) -> dict[str, list[Resource]]:
        """Take in what the disk holds; returns what was taken, by type, for the control plane."""
        retained = {}
        for type_url in TYPES:
            resources = self._cache.load(type_url)
            refused = self._take_in(type_url, resources, ())
            retained[type_url] = [one for one in resources if one.name not in refused]
        return retained

    async def take(self, update: Update) -> Mapping[str, str]:
        """Apply what can be applied of an update; resources that cannot, with their reasons."""
        if update.type_url not in TYPES:
            return {}
        is_large = len(update.upserts) >= _LARGE
        with collector_at_rest() if is_large else nullcontext(), self._all_or_nothing():
            refused = self._take_in(update.type_url, update.upserts, update.removals)
            left_out = (*update.refused, *refused)
            await asyncio.to_thread(self._cache.apply, update.type_url, update.body, left_out)
        if is_large:
            # A turn later, when nobody holds the update any more.
            asyncio.get_running_loop().call_soon(give_back)
        return refused

    def _take_in(self, type_url: str, upserts: Sequence[Resource], removals: Sequence[str]) -> dict[str, str]:
        if type_url == ADDRESS_TYPE:
            addresses, refused = decode_all(upserts, lambda one: decode_address(one.value))
            self.inventory.apply(addresses, removals)
        else:
            policies, refused = decode_all(upserts, lambda one: decode_authorization(one.name, one.value))
            self.policies.apply(policies, removals)
            rules = sum(1 for _ in self.policies.policies())
            self._events.policies_changed([one.key for one in policies], list(removals), rules)
        for reader in self._readers:
            reader()
        return refused

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._undo()
        addresses: list[Workload | Service] = [*self.inventory.workloads(), *self.inventory.services()]
        policies = [*self.policies.policies()]
        try:
            yield
        except Exception:
            self._before = addresses, policies
            self._undo()
            raise

    def _undo(self) -> None:
        """Make what was known before an update that broke off anew; where that breaks off too, the next update tries again."""
        if self._before is None:
            return
        addresses, policies = self._before
        inventory, store = Inventory(), PolicyStore()
        inventory.apply(addresses, ())
        store.apply(policies, ())
        self.inventory, self.policies, self._before = inventory, store, None

    def workload_at(self, address: Address) -> Workload | None:
        """Who has an address on this node's network."""
        return self.inventory.workload_by_address(self.network, address)

    def identity_of(self, pod: PodRequest, node: str) -> Identity:
        """A pod's of this node; of a pod that control has not told of yet, in the trust domain of those that it has."""
        found = self.inventory.workload_of_pod(pod.namespace, pod.name, pod.service_account, node)
        if found is not None:
            return found.identity
        any_other = next(iter(self.inventory.workloads()), None)
        domain = any_other.trust_domain if any_other is not None else TRUST_DOMAIN
        return Identity(domain, pod.namespace, pod.service_account)

    def evaluate_plain(self, workload: Workload, source: Address, destination: Address, port: int) -> Verdict | None:
        """What policy says to a connection whose peer proved no identity; None while half of an update is all that is known."""
        if self._before is not None:
            return None
        nobody: Identity | None = None
        return evaluate(self.policies.applicable(workload), Connection(source, nobody, destination, port))

    def size(self) -> int:
        """How many resources are held."""
        parts: tuple[Iterable[object], ...] = (
            self.inventory.workloads(),
            self.inventory.services(),
            self.policies.policies(),
        )
        return sum(1 for part in parts for _ in part)
