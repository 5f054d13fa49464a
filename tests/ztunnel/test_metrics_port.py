"""The metrics port, which is open to the whole network: who asks again and again takes little of the proxy's time."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.ports import unused_port
from wire.http_client import request
from ztunnel.admin import Admin, Proxy
from ztunnel.metrics import Family

pytestmark = pytest.mark.unit


def test_whoever_floods_it_has_the_metrics_made_a_few_times_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = 0

        def families() -> list[Family]:
            nonlocal made
            made += 1
            return []

        admin, path, port = (
            Admin(cast("Proxy", SimpleNamespace(families=families)), ipv6=False),
            tmp_path / "a.sock",
            unused_port(),
        )
        await admin.listen(path, 0, port, 0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(20):
            replies = await asyncio.gather(*(request(("127.0.0.1", port), "GET", "/metrics", timeout_s=60) for _ in range(10)))
            assert {reply.check() for reply in replies} == {b"# EOF\n"}
        assert made <= 1 + (loop.time() - began) / 0.1
        made = 0
        for _ in range(3):
            (await request(path, "GET", "/metrics", timeout_s=60)).check()
        assert made == 3, "an operator has the newest"
        await admin.close()

    asyncio.run(scenario())
