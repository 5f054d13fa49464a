from pathlib import Path

import pytest

from control.store import Store, StoreError
from control.tokens import MAX_TOKEN_CHARACTERS, Tokens

pytestmark = pytest.mark.unit


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "control.db")
    yield store
    store.close()


def secret(number: int) -> bytes:
    return bytes([number]) * 32


def test_the_newest_two_tokens_of_a_node_are_valid(store: Store) -> None:
    tokens = Tokens(store)
    first, second, third = (tokens.issue("n1", secret(number)) for number in range(3))
    other = tokens.issue("n2", secret(9))
    assert [tokens.node_of(one) for one in (first, second, third, other)] == [None, "n1", "n1", "n2"]
    assert len({first, second, third, other}) == 4


def test_tokens_survive_a_restart_as_hashes(store: Store, tmp_path: Path) -> None:
    tokens = Tokens(store)
    older, newer = tokens.issue("n1", secret(1)), tokens.issue("n1", secret(2))
    again = Tokens(store)
    assert again.node_of(older) == again.node_of(newer) == "n1"
    newest = again.issue("n1", secret(3))
    assert [again.node_of(one) for one in (older, newer, newest)] == [None, "n1", "n1"]
    numbers = [number for _, _, number in sorted(store.tokens(), key=lambda row: row[2])]
    assert len(set(numbers)) == 2 and Tokens(store).node_of(newest) == "n1", "which is the newest does not rest on their order"
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for token in (older, newer, newest):
        assert token.encode() not in content
        assert bytes.fromhex(token.removeprefix("weft-")) not in content


def test_tokens_go_with_their_node(store: Store) -> None:
    tokens = Tokens(store)
    gone, kept = tokens.issue("n1", secret(1)), tokens.issue("n2", secret(2))
    assert tokens.keep_only(["n2", "n3"]) == ["n1"]
    assert tokens.keep_only(["n2", "n3"]) == [], "gone once"
    for current in (tokens, Tokens(store)):
        assert current.node_of(gone) is None
        assert current.node_of(kept) == "n2"


def test_tokens_of_a_node_that_went_while_the_database_took_nothing_go_from_it_later(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And those that its successor has got since stay."""
    tokens = Tokens(store)
    gone, back = tokens.issue("n1", secret(1)), tokens.issue("n2", secret(2))

    def full(*_: object) -> None:
        raise StoreError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(store, "replace_tokens", full)
        assert tokens.keep_only([]) == ["n1", "n2"]
        assert tokens.node_of(gone) is None and tokens.node_of(back) is None
        assert caplog.messages == ["tokens of removed nodes: no room; a restart would let them in until then"]
        with pytest.raises(StoreError):
            tokens.issue("n1", secret(3))
        assert tokens.keep_only(["n1", "n2"]) == [] and tokens.node_of(gone) is None
    assert Tokens(store).node_of(gone) == "n1", "as it was"
    newer = tokens.issue("n2", secret(4))
    assert tokens.keep_only(["n1", "n2"]) == []
    for current in (tokens, Tokens(store)):
        assert [current.node_of(one) for one in (gone, back, newer)] == [None, None, "n2"]


def test_what_is_no_token_is_nobody(store: Store) -> None:
    tokens = Tokens(store)
    token = tokens.issue("n1", secret(1))
    for text in ("", token[:-1], token.upper(), token + " ", "\udcff", token * 100, "x" * (MAX_TOKEN_CHARACTERS + 1)):
        assert tokens.node_of(text) is None
    with pytest.raises(ValueError, match="32 random bytes"):
        tokens.issue("n1", b"short")
