"""The issuer: prefetches for who lives here, serves who waits, forgets who left, and never works for strangers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mesh.identity import Identity
from mesh.workload import TunnelProtocol, Workload
from ztunnel.ca import FetchError
from ztunnel.certificates import MAX_PREFETCHES, Certificate
from ztunnel.channel import CertificateFailed, ForgetCertificate, SetCertificate
from ztunnel.issuer import CertificateMessage, Issuer
from ztunnel.residents import Residents

pytestmark = pytest.mark.unit

WEB, DB = Identity("cluster.local", "demo", "web"), Identity("cluster.local", "demo", "db")


class Ca:
    """Issues certificates that live for `ttl_s`, or refuses."""

    def __init__(self) -> None:
        self.asked: list[Identity] = []
        self.refusal = ""
        self.ttl_s = 1000.0
        self.push: Callable[[Certificate], None] = lambda _: None
        self.withdraw: Callable[[Identity, str], None] = lambda *_: None
        self.moves = 0
        self.forgotten: list[Identity] = []

    def on_renewal(self, renewed: Callable[[Certificate], None], withdrawn: Callable[[Identity, str], None]) -> None:
        self.push, self.withdraw = renewed, withdrawn

    def residents_changed(self) -> None:
        self.moves += 1

    def forget(self, identity: Identity) -> None:
        self.forgotten.append(identity)

    async def close(self) -> None:
        """Nothing is open."""

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        self.asked.append(identity)
        await asyncio.sleep(0)
        if self.refusal:
            raise FetchError(self.refusal)
        return Certificate(identity, b"chain", b"key", b"roots", now, now + self.ttl_s)


class Shelf:
    """Keeps certificates in plain sight."""

    def __init__(self) -> None:
        self.kept: dict[Identity, Certificate] = {}
        self.sealed_before: set[Identity] = set()

    def keep(self, certificate: Certificate, now: float) -> None:
        self.kept[certificate.identity] = certificate
        self.sealed_before.discard(certificate.identity)

    def recall(self, identity: Identity, now: float) -> Certificate | None:
        return self.kept.get(identity)

    def forget(self, identity: Identity) -> None:
        self.kept.pop(identity, None)

    def forget_strangers(self, at_home: Callable[[Identity], bool]) -> None:
        self.kept = {identity: one for identity, one in self.kept.items() if at_home(identity)}

    def outdated(self) -> set[Identity]:
        return self.sealed_before


class World:
    """An issuer at work, and what it told the workers."""

    def __init__(self) -> None:
        self.ca, self.shelf, self.residents = Ca(), Shelf(), Residents("n1")
        self.told: list[CertificateMessage] = []
        self.issuer = Issuer(self.ca, self.shelf, self.residents, self.told.append)

    def move_in(self, name: str) -> None:
        workload = Workload(f"K//Pod/demo/{name}", name, "demo", service_account=name, protocol=TunnelProtocol.HBONE, node="n1")
        self.residents.update([workload], [])
        self.issuer.residents_changed()

    def move_out(self, name: str) -> None:
        self.residents.update([], [f"K//Pod/demo/{name}"])
        self.issuer.residents_changed()


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        running = asyncio.ensure_future(world.issuer.run())
        await scenario(world)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 100))


def test_prefetch_serve_and_forget(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        began = time.time()
        world.move_in("web")
        await eventually(lambda: len(world.told) == 1)
        assert isinstance(world.told[0], SetCertificate) and world.told[0].identity == WEB
        assert began <= world.told[0].expires_unix_s - 1000 <= time.time()
        world.issuer.need(WEB)
        assert world.told[1] == world.told[0] and world.issuer.statements() == [world.told[0]]
        world.move_out("web")
        assert world.told[2] == ForgetCertificate(WEB) and world.issuer.statements() == []
        world.issuer.need(DB)
        assert world.told[3] == CertificateFailed(DB, "no workload of this node has this identity")
        assert world.ca.asked == [WEB]

    play(scenario)


def test_more_residents_than_the_queue_holds_are_all_prefetched_in_the_end(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        crowd = [
            Workload(f"K//Pod/demo/{one}", one, "demo", service_account=one, protocol=TunnelProtocol.HBONE, node="n1")
            for one in map(str, range(MAX_PREFETCHES + 44))
        ]
        world.residents.update(crowd, [])
        world.issuer.residents_changed()
        assert len(world.issuer.states()) == MAX_PREFETCHES
        await eventually(lambda: len(world.told) == len(crowd))

    play(scenario)


def test_who_has_one_identity_alone_prefetches_nobody_elses(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.residents._prefetches = False
        world.move_in("web")
        world.move_in("db")
        world.issuer.need(WEB)
        await eventually(lambda: world.told)
        assert world.ca.asked == [WEB]

    play(scenario)


def test_prefetch_forget_certs(eventually: Any) -> None:
    """Who leaves takes its key along, also while it is being fetched, and who waits is told."""

    async def scenario(world: World) -> None:
        world.move_in("web")
        await eventually(lambda: world.ca.asked == [WEB])
        world.move_out("web")
        assert world.told[-1] == ForgetCertificate(WEB) and world.issuer.states() == []
        world.move_in("db")
        await eventually(lambda: isinstance(world.told[-1], SetCertificate))
        assert [one.identity for one in world.issuer.statements()] == [DB] and WEB not in world.shelf.kept

    play(scenario)


def test_who_leaves_while_a_certificate_is_fetched_is_forgotten_again_at_its_source(
    eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that pushes notes whom it has given something to, and would follow that one for ever, its key at hand."""

    async def scenario(world: World) -> None:
        begun, go_on, fetch = asyncio.Event(), asyncio.Event(), world.ca.fetch

        async def slow(identity: Identity, now: float) -> Certificate:
            begun.set()
            await go_on.wait()
            return await fetch(identity, now)

        monkeypatch.setattr(world.ca, "fetch", slow)
        world.move_in("web")
        await begun.wait()
        world.move_out("web")
        assert world.ca.forgotten == [WEB]
        go_on.set()
        await eventually(lambda: world.ca.forgotten == [WEB, WEB])
        assert world.told == [ForgetCertificate(WEB)] and not world.shelf.kept

    play(scenario)


def test_what_a_source_pushes_is_in_force_at_once_while_its_identity_lives_here(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.move_in("web")
        await eventually(lambda: len(world.told) == 1)
        pushed = Certificate(WEB, b"newer", b"key", b"roots", time.time(), time.time() + 2000)
        world.ca.push(pushed)
        assert isinstance(world.told[1], SetCertificate) and world.told[1].chain_pem == b"newer"
        assert world.shelf.kept[WEB] == pushed
        world.move_out("web")
        assert world.ca.forgotten == [WEB]
        world.ca.push(pushed)
        assert world.told[2:] == [ForgetCertificate(WEB)] and not world.shelf.kept

    play(scenario)


def test_what_a_source_takes_away_is_nobodys_at_once(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.move_in("web")
        await eventually(lambda: len(world.told) == 1)
        assert world.ca.moves == 1
        world.ca.refusal = "no entry"
        world.ca.withdraw(WEB, "its entry was deleted")
        assert world.told[1:] == [CertificateFailed(WEB, "its entry was deleted")]
        assert not world.shelf.kept and not world.issuer.statements()
        assert world.issuer.states() == [(WEB, "Unavailable: its entry was deleted", None)]
        world.issuer.need(WEB)
        assert world.told[2:] == [CertificateFailed(WEB, "its entry was deleted")]
        world.ca.withdraw(DB, "nobody asked")
        world.ca.refusal = ""
        await eventually(lambda: isinstance(world.told[-1], SetCertificate))
        assert len(world.issuer.statements()) == 1

    play(scenario)


def test_a_refusal_reaches_who_waits_and_is_tried_again(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.ca.refusal = "CA away"
        world.residents.set_pods([("demo", "db")])
        world.issuer.need(DB)
        await eventually(lambda: world.told)
        assert world.told == [CertificateFailed(DB, "CA away")]
        assert world.issuer.states() == [(DB, "Unavailable: CA away", None)]
        world.ca.refusal = ""
        await eventually(lambda: len(world.told) == 2)
        assert isinstance(world.told[1], SetCertificate) and len(world.ca.asked) == 2

    play(scenario)


def test_refreshed_at_half_life(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.ca.ttl_s = 0.4
        world.move_in("web")
        await eventually(lambda: len(world.told) >= 3)
        assert all(isinstance(message, SetCertificate) for message in world.told)

    play(scenario)


def test_a_successor_goes_on_with_what_was_kept_and_asks_the_ca_at_half_of_the_rest(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        now = time.time()
        kept = Certificate(WEB, b"chain", b"key", b"roots", now - 10, now + 2)
        world.shelf.kept = {WEB: kept, DB: Certificate(DB, b"chain", b"key", b"roots", now, now + 9)}
        world.move_in("web")
        assert [message.expires_unix_s for message in world.told if isinstance(message, SetCertificate)] == [now + 2]
        assert not world.ca.asked
        world.issuer.residents_complete()
        assert world.shelf.kept == {WEB: kept}, "who lives here no longer leaves no key"
        await eventually(lambda: len(world.told) == 2)
        assert world.ca.asked == [WEB] and world.shelf.kept[WEB].not_after > now + 900

    play(scenario)


def test_what_is_issued_is_kept_until_its_identity_leaves_and_again_when_the_token_changes(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.move_in("web")
        await eventually(lambda: WEB in world.shelf.kept)
        world.shelf.kept, world.shelf.sealed_before = {}, {WEB}
        world.move_in("db")
        await eventually(lambda: set(world.shelf.kept) == {WEB, DB})
        world.move_out("web")
        assert set(world.shelf.kept) == {DB}

    play(scenario)
