"""What is to be done again for which pod, when, and why: after a pause that doubles while the same pod fails."""

import asyncio

RETRY_FIRST_S, RETRY_LONGEST_S = 0.35, 5.0


class Retries:
    """Those of a node's pods, by uid."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        """By the loop's clock."""
        self._pauses: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._wake = asyncio.Event()

    def reason(self, uid: str) -> str:
        """Why a pod failed; empty where it did not, or what failed has worked since."""
        return self._failures.get(uid, "")

    def schedule(self, uid: str, pause_s: float) -> None:
        """Have it done then, and no more when it would have been."""
        self._due[uid] = asyncio.get_running_loop().time() + pause_s
        self._wake.set()

    def failed(self, uid: str, reason: str) -> bool:
        """Have it tried again, later than the last time; whether the reason is another one than before."""
        news = self._failures.get(uid) != reason
        self._failures[uid] = reason
        pause_s = self._pauses.get(uid, RETRY_FIRST_S)
        self._pauses[uid] = min(pause_s * 2, RETRY_LONGEST_S)
        self.schedule(uid, pause_s)
        return news

    def worked(self, uid: str) -> None:
        """What failed before is forgiven."""
        self._failures.pop(uid, None)
        self._pauses.pop(uid, None)

    def cancel(self, uid: str) -> None:
        """There is nothing left to be done."""
        self._due.pop(uid, None)

    async def take_due(self) -> list[str]:
        """Wait for the next that are due, and take them out."""
        while True:
            self._wake.clear()
            now = asyncio.get_running_loop().time()
            ready = [uid for uid, due in self._due.items() if due <= now]
            if ready:
                for uid in ready:
                    del self._due[uid]
                return ready
            try:
                async with asyncio.timeout_at(min(self._due.values(), default=None)):
                    await self._wake.wait()
            except TimeoutError:
                continue
