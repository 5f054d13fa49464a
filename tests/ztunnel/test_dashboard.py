"""The page for a browser: what is there, what is missing, and nothing that a name could smuggle in."""

import re
from ipaddress import ip_address

import pytest

from mesh.identity import Identity
from ztunnel.certificates import Certificate
from ztunnel.connection_record import ConnectionRecord
from ztunnel.dashboard import page
from ztunnel.zds_session import PodInfo

pytestmark = pytest.mark.unit

WEB = PodInfo("u1", "shop", "web", "sa-web")
ENDS = (ip_address("10.0.0.1"), 1), (ip_address("10.0.0.2"), 2)
HELD = Identity("cluster.local", "shop", "sa-web")


def text(html: str) -> list[str]:
    return [part.strip() for part in re.sub(r"<style>.*?</style>|<[^>]+>", "\n", html, flags=re.S).split("\n") if part.strip()]


def test_pods_connections_and_certificates_are_counted() -> None:
    records = [ConnectionRecord(1, "u1", "inbound", "HBONE", *ENDS), ConnectionRecord(2, "u1", "inbound", "TCP", *ENDS)]
    certificate = Certificate(HELD, b"", b"", b"", 0.0, 86400.0)
    shown = text(page("n1", "weft-1", [], [WEB], {}, records, [(HELD, "Available", certificate)]))
    assert "ready" in shown
    where = shown.index("shop/web")
    assert shown[where : where + 4] == ["shop/web", "sa-web", "2", "0"]
    where = shown.index(str(HELD))
    assert shown[where : where + 3] == [str(HELD), "Available", "1970-01-02 00:00:00 UTC"]


def test_what_is_missing_is_said_and_markup_in_names_stays_text() -> None:
    html = page("n1", "weft-1", ["agent (<gone>)"], [PodInfo("u", "a", "<script>", "&")], {"a/b": "port <taken>"}, [], [])
    assert "<script>" not in html and "<gone>" not in html and "<taken>" not in html
    shown = text(html)
    assert "not ready: agent (&lt;gone&gt;)" in shown and "port &lt;taken&gt;" in shown
