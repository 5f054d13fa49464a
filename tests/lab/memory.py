"""How much processes grow while something happens to them."""

import threading
from collections.abc import Iterable

from bench.accounts import pss_bytes


class Memory:
    """The proportional set size of each of these processes, watched while a block runs. MiB, by pid."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.now()
        self.highest = dict(self.before)

    def now(self) -> dict[int, float]:
        return {pid: pss_bytes(pid) / (1 << 20) for pid in self._pids}

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for pid, size in self.now().items():
                self.highest[pid] = max(size, self.highest[pid])

    @property
    def growth(self) -> dict[int, float]:
        """Each one's, at its largest."""
        return {pid: self.highest[pid] - size for pid, size in self.before.items()}

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
