"""What this node knows of the mesh: updates of the control plane, decoded, indexed, passed on to the workers, kept on disk."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from mesh.delta import Resource
from mesh.domains import TRUST_DOMAIN
from mesh.inventory import Inventory
from mesh.policy import Policy
from mesh.policy_store import PolicyStore
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, decode_address, decode_all, decode_authorization
from mesh.trust_domains import TrustDomains
from mesh.workload import Service, Workload
from wire.memory import collector_at_rest, give_back
from wire.mesh_cache import MeshCache
from wire.xds import Update
from ztunnel.channel import UpdateInventory, UpdatePolicies

if TYPE_CHECKING:
    from mesh.local_mesh import LocalMesh

_Noun = TypeVar("_Noun")
TYPE_URLS = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
"""In the order in which they are asked for."""

_PIECE = 1024
"""Resources taken in at a time, and of a message to the workers: 8 ms here, and 2 ms there."""


class MeshView:
    """Inventory and policies, in step with the control plane."""

    def __init__(
        self,
        cache: MeshCache,
        on_change: Callable[[UpdateInventory | UpdatePolicies], None],
        domains: TrustDomains = TrustDomains(TRUST_DOMAIN),  # noqa: B008  a value
    ) -> None:
        """`on_change` hears of every change, after it was taken in here."""
        self.inventory = Inventory()
        self.policies = PolicyStore()
        self.restored = 0
        """Resources that came from the disk at start."""
        self.local: LocalMesh | None = None
        """What this node's own configuration tells."""
        self._local_addresses: dict[str, Workload | Service] = {}
        self._local_policies: dict[str, Policy] = {}
        self._cache = cache
        self._on_change = on_change
        self._domains = domains
        self._awaited: set[str] = set()
        """Types of which nothing at all is known yet, or of which an update broke off."""
        self._unfinished = False
        """What workers know is a part of a state. A pod that began now would send past waypoints, and let in past policies."""

    def take_local(self, local: "LocalMesh") -> None:
        """Take in what this node's own configuration tells, in the place of what it told before.

        What control tells under the same name counts while it does. Policies that go, go last.
        """
        self.local = local
        addresses: dict[str, Workload | Service] = {one.uid: one for one in local.workloads}
        addresses |= {one.key: one for one in local.services}
        policies = {one.key: self._domains.expand(one) for one in local.policies}
        old, self._local_addresses = self._local_addresses, _kept(self._local_addresses, addresses)
        changed, gone = _difference(old, self._local_addresses, self._address)
        old_policies, self._local_policies = self._local_policies, _kept(self._local_policies, policies)
        changed_policies, gone_policies = _difference(old_policies, self._local_policies, self.policies.policy)
        self._change_policies(changed_policies, [])
        self._change_inventory(changed, gone, self._unfinished)
        self._change_policies([], gone_policies)

    def _address(self, name: str) -> Workload | Service | None:
        return self.inventory.workload(name) or self.inventory.service(name)

    def restore(self) -> dict[str, list[Resource]]:
        """Take in what the disk holds; returns what was taken, by type, for the control plane."""
        retained = {}
        for type_url in TYPE_URLS:
            resources = self._cache.load(type_url)
            refused = self._take_in(type_url, resources, ())
            retained[type_url] = [one for one in resources if one.name not in refused]
            self.restored += len(retained[type_url])
        # One that ended between its first addresses and its first policies knows a part: no better than nothing. Nor is what
        # this node's own configuration tells all there is: what control has to say of it may be a policy, or a waypoint.
        self._awaited = {type_url for type_url in TYPE_URLS if not self._cache.answered(type_url)}
        self._unfinished = bool(self._awaited)
        return retained

    async def take(self, update: Update) -> Mapping[str, str]:
        """Take in an update of the control plane; returns what is refused, name -> reason.

        A large one goes piece by piece, so that neither this process nor a worker is away for long; removals go last.
        """
        if update.type_url not in TYPE_URLS:
            return {}
        *earlier, last = range(0, len(update.upserts) or 1, _PIECE)
        awaited = self._awaited - {update.type_url}
        with collector_at_rest() if earlier else nullcontext():
            if earlier:
                self._awaited.add(update.type_url)  # should it break off, all of it has yet to come
            refused, brought = await self._take_pieces(update, earlier)
            # What an update both removes and brings is there afterwards.
            removals = [name for name in update.removals if name not in brought]
            refused |= self._take_in(update.type_url, update.upserts[last:], removals, bool(awaited))
            self._awaited = awaited
            if self._unfinished and not awaited:  # the last that was missing were policies
                self._change_inventory([], [])
            left_out = (*update.refused, *refused)
            await asyncio.to_thread(self._cache.apply, update.type_url, update.body, left_out)
        if earlier:
            # A turn later, when nobody holds the update any more.
            asyncio.get_running_loop().call_soon(give_back)
        return refused

    async def _take_pieces(self, update: Update, begins: Iterable[int]) -> tuple[dict[str, str], set[str]]:
        """All but the last piece; returns what is refused, and (where that matters) what was brought."""
        refused: dict[str, str] = {}
        brought: set[str] = set()
        for begin in begins:
            piece = update.upserts[begin : begin + _PIECE]
            refused |= self._take_in(update.type_url, piece, (), unfinished=True)
            if update.removals:
                brought |= {resource.name for resource in piece}
            await asyncio.sleep(0)
        return refused, brought

    def _take_in(
        self, type_url: str, upserts: Sequence[Resource], removals: Sequence[str], unfinished: bool = False
    ) -> dict[str, str]:
        if type_url == ADDRESS_TYPE:
            addresses, refused = decode_all(upserts, lambda resource: decode_address(resource.value))
            self._change_inventory([*_left_with(self._local_addresses, removals), *addresses], list(removals), unfinished)
        else:
            policies, refused = decode_all(upserts, lambda resource: decode_authorization(resource.name, resource.value))
            expanded = list(map(self._domains.expand, policies))
            self._change_policies([*_left_with(self._local_policies, removals), *expanded], list(removals))
        return refused

    def _change_inventory(self, upserts: list[Workload | Service], removals: list[str], unfinished: bool = False) -> None:
        if upserts or removals or unfinished is not self._unfinished:
            with self._broken_off_if_it_fails(ADDRESS_TYPE):
                self.inventory.apply(upserts, removals)
            self._unfinished = unfinished
            self._on_change(UpdateInventory(upserts, removals, unfinished))

    def _change_policies(self, upserts: list[Policy], removals: list[str]) -> None:
        if upserts or removals:
            with self._broken_off_if_it_fails(AUTHORIZATION_TYPE):
                self.policies.apply(upserts, removals)
            self._on_change(UpdatePolicies(upserts, removals))

    @contextmanager
    def _broken_off_if_it_fails(self, type_url: str) -> Iterator[None]:
        """Where memory ends within a change, what is here may lack a policy that was to be replaced, or an endpoint.

        Workers that run go on with what they were told; those that start begin nothing until the change has come again.
        """
        try:
            yield
        except BaseException:
            self._awaited.add(type_url)
            self._unfinished = True
            raise

    def statements(self) -> Iterator[UpdateInventory | UpdatePolicies]:
        """All that is known, for a worker that starts."""
        addresses: list[Workload | Service] = [*self.inventory.workloads(), *self.inventory.services()]
        yield from (UpdateInventory(list(piece), [], self._unfinished) for piece in _pieces(addresses))
        yield from (UpdatePolicies(list(piece), []) for piece in _pieces(list(self.policies.policies())))


def _pieces(all_of_them: Sequence[_Noun]) -> list[Sequence[_Noun]]:
    """One at least."""
    return [all_of_them[begin : begin + _PIECE] for begin in range(0, len(all_of_them) or 1, _PIECE)]


def _left_with(local: dict[str, _Noun], removals: Iterable[str]) -> list[_Noun]:
    """What is true again when control takes something away."""
    return [local[name] for name in removals if name in local] if local else []


def _kept(old: dict[str, _Noun], new: dict[str, _Noun]) -> dict[str, _Noun]:
    """The new ones; what is as it was is the same object still."""
    return {name: old[name] if old.get(name) == value else value for name, value in new.items()}


def _difference(
    old: dict[str, _Noun], new: dict[str, _Noun], known: Callable[[str], _Noun | None]
) -> tuple[list[_Noun], list[str]]:
    """Of what was told here and is now, what changes; who told something else meanwhile is right."""

    def ours(name: str) -> bool:
        return known(name) is old.get(name)

    changed = [value for name, value in new.items() if value is not old.get(name) and ours(name)]
    return changed, [name for name in old if name not in new and ours(name)]
