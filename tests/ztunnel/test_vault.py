"""Connections that wait for a certificate: served, refused with the reason, or told that its identity left."""

from typing import Any

import pytest

from tests.ztunnel.world import CLIENT, SERVER, Authority
from ztunnel import vault
from ztunnel.channel import CertificateFailed, ForgetCertificate, NeedCertificate, SetCertificate
from ztunnel.loop import Loop
from ztunnel.tls import Credentials
from ztunnel.vault import Vault

pytestmark = pytest.mark.unit

AUTHORITY = Authority()


class Desk:
    """A vault, what it asked for, and what its waiters heard."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.asked: list[NeedCertificate] = []
        self.heard: list[Any] = []
        self.replaced: list[Credentials | None] = []
        self.vault = Vault(self.loop, self.asked.append, self.replaced.append)

    def wait(self, who: object) -> None:
        self.vault.wait(CLIENT, who, self.heard.append)


def test_several_waiters_make_one_request_and_get_the_same_credentials() -> None:
    desk = Desk()
    desk.wait("one")
    desk.wait("two")
    assert desk.asked == [NeedCertificate(CLIENT)] and desk.vault.find(CLIENT) is None
    desk.vault.set(AUTHORITY.certificate_for(CLIENT))
    assert desk.heard == [desk.vault.find(CLIENT)] * 2 and len(desk.vault.deadlines) == 0


def test_forget_pending_is_told_to_who_waits_and_leaves_no_key() -> None:
    desk = Desk()
    desk.wait("one")
    desk.vault.forget(ForgetCertificate(CLIENT))
    assert desk.heard == [f"identity {CLIENT} is forgotten: no local workload has it"]
    desk.vault.set(AUTHORITY.certificate_for(CLIENT))
    desk.vault.forget(ForgetCertificate(CLIENT))
    assert desk.vault.find(CLIENT) is None and len(desk.vault) == 0


def test_who_keeps_something_for_credentials_hears_when_they_are_replaced_or_gone() -> None:
    desk = Desk()
    desk.vault.set(AUTHORITY.certificate_for(CLIENT))
    first = desk.vault.find(CLIENT)
    desk.vault.set(AUTHORITY.certificate_for(CLIENT))
    second = desk.vault.find(CLIENT)
    desk.vault.forget(ForgetCertificate(CLIENT))
    assert desk.replaced == [None, first, second]


def test_a_failure_reaches_its_own_waiters_only() -> None:
    desk = Desk()
    desk.wait("one")
    desk.vault.failed(CertificateFailed(SERVER, "not yours"))
    desk.vault.failed(CertificateFailed(CLIENT, "CA away"))
    assert desk.heard == [f"no certificate for {CLIENT}: CA away"]


def test_what_has_expired_or_is_withdrawn_serves_nobody() -> None:
    desk = Desk()
    desk.vault.set(AUTHORITY.certificate_for(CLIENT))
    held = desk.vault.find(CLIENT)
    assert desk.vault.failed(CertificateFailed(CLIENT, "CA away")) and desk.replaced[-1] is held
    desk.wait("one")
    assert desk.vault.find(CLIENT) is None and desk.asked == [NeedCertificate(CLIENT)] and not desk.heard
    assert not desk.vault.failed(CertificateFailed(CLIENT, "CA away"))
    assert desk.heard == [f"no certificate for {CLIENT}: CA away"]


def test_a_certificate_of_no_use_is_a_reason() -> None:
    desk = Desk()
    desk.wait("one")
    desk.vault.set(SetCertificate(CLIENT, b"no chain", b"no key", AUTHORITY.pem, 0))
    assert str(desk.heard[0]).startswith(f"certificate of {CLIENT} is of no use: ")


def test_who_waits_is_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "MAX_WAITING", 2)
    desk = Desk()
    for who in ("one", "two", "three"):
        desk.wait(who)
    assert desk.heard == [f"too many connections wait for the certificate of {CLIENT}"]
    desk.vault.forget_waiter(CLIENT, "one")
    desk.vault.deadlines.expire(desk.loop.now + vault.WAIT_S + 1)
    assert desk.heard[1:] == [f"no certificate for {CLIENT} within 10 s"]
