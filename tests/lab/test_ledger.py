from ipaddress import ip_network
from pathlib import Path

import pytest

from lab.addresses import MAX_NODES
from lab.ledger import Ledger, Placement, load, save

pytestmark = pytest.mark.unit
RANGES = (ip_network("10.1.0.0/24"),)


def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    ledger = Ledger()
    assert ledger.node_index("b") == 1
    ledger.pods["shop/web"] = Placement("u1", "b", "digest")
    number = ledger.host_number("b", "shop/web", RANGES)
    save(ledger, tmp_path / "state" / "ledger.json")
    again = load(tmp_path / "state" / "ledger.json")
    assert again == ledger
    assert again.host_number("b", "shop/web", RANGES) == number


def test_none_is_an_empty_one(tmp_path: Path) -> None:
    assert load(tmp_path / "ledger.json") == Ledger()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": {"a": "x"}, "hosts": {}, "pods": {}}'])
def test_a_damaged_one_is_refused_with_its_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is not a lab's ledger .*weft lab down"):
        load(path)


def test_an_index_is_given_again_only_when_its_node_is_forgotten() -> None:
    ledger = Ledger()
    assert [ledger.node_index(name) for name in ("a", "b", "a", "c")] == [1, 2, 1, 3]
    ledger.forget_node("b")
    assert ledger.node_index("d") == 2
    for number in range(MAX_NODES - 3):
        ledger.node_index(f"n{number}")
    with pytest.raises(ValueError, match="at most"):
        ledger.node_index("one-too-many")


def test_an_address_taken_from_a_gone_pod_is_no_longer_its() -> None:
    ledger = Ledger(pods={"x/b": Placement("u", "n", "s")})
    small = (ip_network("10.0.0.0/30"),)  # one pod
    assert ledger.host_number("n", "x/a", small) == ledger.host_number("n", "x/b", small)
    assert set(ledger.hosts["n"]) == {"x/b"}
