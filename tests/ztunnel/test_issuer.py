"""The issuer: prefetches for who lives here, serves who waits, forgets who left, and never works for strangers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mesh.identity import Identity
from mesh.workload import TunnelProtocol, Workload
from ztunnel.ca import FetchError
from ztunnel.certificates import Certificate
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

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        self.asked.append(identity)
        await asyncio.sleep(0)
        if self.refusal:
            raise FetchError(self.refusal)
        return Certificate(identity, b"chain", b"key", b"roots", now, now + self.ttl_s)


class World:
    """An issuer at work, and what it told the workers."""

    def __init__(self) -> None:
        self.ca, self.residents = Ca(), Residents("n1")
        self.told: list[CertificateMessage] = []
        self.issuer = Issuer(self.ca, self.residents, self.told.append)

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

    asyncio.run(asyncio.wait_for(run(), 30))


def test_prefetch_serve_and_forget(eventually: Any) -> None:
    async def scenario(world: World) -> None:
        world.move_in("web")
        await eventually(lambda: len(world.told) == 1)
        assert isinstance(world.told[0], SetCertificate) and world.told[0].identity == WEB
        assert world.told[0].expires_unix_s == pytest.approx(time.time() + 1000, abs=5)
        world.issuer.need(WEB)
        assert world.told[1] == world.told[0] and world.issuer.statements() == [world.told[0]]
        world.move_out("web")
        assert world.told[2] == ForgetCertificate(WEB) and world.issuer.statements() == []
        world.issuer.need(DB)
        assert world.told[3] == CertificateFailed(DB, "no workload of this node has this identity")
        assert world.ca.asked == [WEB]

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
