from pathlib import Path

import pytest

from control.store import Store
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
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for token in (older, newer, newest):
        assert token.encode() not in content
        assert bytes.fromhex(token.removeprefix("weft-")) not in content


def test_tokens_go_with_their_node(store: Store) -> None:
    tokens = Tokens(store)
    gone, kept = tokens.issue("n1", secret(1)), tokens.issue("n2", secret(2))
    assert tokens.keep_only(["n2", "n3"]) == ["n1"]
    for current in (tokens, Tokens(store)):
        assert current.node_of(gone) is None
        assert current.node_of(kept) == "n2"


def test_what_is_no_token_is_nobody(store: Store) -> None:
    tokens = Tokens(store)
    token = tokens.issue("n1", secret(1))
    for text in ("", token[:-1], token.upper(), token + " ", "\udcff", token * 100, "x" * (MAX_TOKEN_CHARACTERS + 1)):
        assert tokens.node_of(text) is None
    with pytest.raises(ValueError, match="32 random bytes"):
        tokens.issue("n1", b"short")
