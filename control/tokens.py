"""Node tokens: one secret per node, remembered as a hash. The newest two are valid, so that a rotation cuts nobody off."""

import hashlib
import logging
from collections.abc import Iterable

from control.store import Store, StoreError

TOKENS_PER_NODE = 2
TOKEN_BYTES = 32
MAX_TOKEN_CHARACTERS = 256
"""Of what a caller presents; longer ones are refused unread."""
_log = logging.getLogger("control.tokens")


class Tokens:
    """Which token belongs to which node."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: dict[bytes, str] = {}
        self._by_node: dict[str, list[tuple[bytes, int]]] = {}
        self._revoked: set[str] = set()
        """Nodes whose tokens are no longer valid, and still in the database."""
        for digest, node, number in sorted(store.tokens(), key=lambda row: row[2]):
            self._nodes[digest] = node
            self._by_node.setdefault(node, []).append((digest, number))

    def issue(self, node: str, secret: bytes) -> str:
        """Make a further token from 32 random bytes; of the node's older ones only the newest stays valid.

        Raises: StoreError.
        """
        if len(secret) != TOKEN_BYTES:
            raise ValueError(f"a token is made of {TOKEN_BYTES} random bytes, not {len(secret)}")
        token = f"weft-{secret.hex()}"
        held = self._by_node.get(node, [])
        number = held[-1][1] + 1 if held else 1
        kept = [*held[-(TOKENS_PER_NODE - 1) :], (_digest(token), number)]
        self._store.replace_tokens(node, kept)
        self._replace(node, kept)
        self._revoked.discard(node)
        return token

    def node_of(self, token: str) -> str | None:
        """The node that a token names; None for a token that was never issued or is no longer valid."""
        return self._nodes.get(_digest(token)) if len(token) <= MAX_TOKEN_CHARACTERS else None

    def keep_only(self, nodes: Iterable[str]) -> list[str]:
        """Forget the tokens of every other node, at once whatever the database does; returns those nodes."""
        gone = sorted(set(self._by_node) - set(nodes))
        for node in gone:
            self._replace(node, [])
        self._revoked.update(gone)
        try:
            for node in sorted(self._revoked):
                self._store.replace_tokens(node, ())
                self._revoked.discard(node)
        except StoreError as error:
            _log.error("tokens of removed nodes: %s; a restart would let them in until then", error)
        return gone

    def _replace(self, node: str, tokens: list[tuple[bytes, int]]) -> None:
        for digest, _ in self._by_node.pop(node, []):
            self._nodes.pop(digest, None)
        if tokens:
            self._by_node[node] = tokens
            self._nodes.update((digest, node) for digest, _ in tokens)


def _digest(token: str) -> bytes:
    """Fast on purpose: 256 random bits need no stretching."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
