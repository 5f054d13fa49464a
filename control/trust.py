"""The roots in force: whom this mesh trusts now, who signs, and the rotation that moves on by itself."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from control.authority import Authority
from control.root import load_or_make_roots, new_root, new_serial, save_roots
from control.rotation import Phase, Roots, advance, begin, granted, least_overlap_s

_LONGEST_PAUSE_S = 60.0
"""Roots live by the wall clock, timers by another."""
_log = logging.getLogger("control.trust")


class Trust:
    """The roots of one control plane, on disk before they are in force."""

    def __init__(
        self, folder: Path, organization: str, default_lifetime_s: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises: ValueError or OSError where the roots cannot be read or made."""
        self._folder = folder
        self._organization = organization
        self._default_lifetime_s = default_lifetime_s
        self._clock = clock
        self._wake = asyncio.Event()
        self.roots = load_or_make_roots(folder, organization, self._now())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    @property
    def signer(self) -> Authority:
        """Who signs now."""
        return self.roots.signer

    @property
    def bundle_pem(self) -> str:
        """All roots that are trusted now."""
        return self.roots.bundle_pem

    def granted(self, lifetime_s: int) -> None:
        """A leaf of this life is about to be signed. Raises: OSError where that cannot be remembered."""
        roots = granted(self.roots, lifetime_s, self._clock())
        if roots is not self.roots:
            self._put(roots)

    def rotate(self, overlap_s: int = 0) -> Roots:
        """Begin a rotation; 0: an overlap as long as certificates live.

        Raises: ValueError where it cannot begin; OSError.
        """
        overlap_s = overlap_s or max(least_overlap_s(self.roots, self._clock()), self._default_lifetime_s)
        successor = new_root(self._organization, self._now())
        self._put(begin(self.roots, successor, overlap_s, self._clock()))
        _log.info("root rotation: a successor is announced; it signs in %d s", overlap_s)
        self._wake.set()
        return self.roots

    def step(self) -> None:
        """Do what is due. Raises: OSError."""
        roots = advance(self.roots, self._clock(), new_serial())
        if roots is not self.roots:
            self._put(roots)
            signing = roots.phase is Phase.SIGNING
            _log.info("root rotation: %s", "the new root signs" if signing else "the old root is retired")
        if self.roots.expires_soon(self._now()):
            self.rotate()

    def _put(self, roots: Roots) -> None:
        save_roots(self._folder, roots)
        self.roots = roots

    async def follow(self) -> None:
        """Move on when it is time, until cancelled."""
        while True:
            self._wake.clear()
            try:
                self.step()
            except (OSError, ValueError) as error:
                _log.error("root rotation: %s", error)
            due_s = self.roots.next_at_s
            pause_s = _LONGEST_PAUSE_S if due_s is None else min(max(due_s - self._clock(), 0.05), _LONGEST_PAUSE_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
