"""The data workers: processes that carry the traffic, started, told everything, heard, and replaced when they die.

What every worker must know is sent to all; a worker
that is started anew is first told the whole present state, pods with the very same listeners, and so takes up where the other
fell. The listeners stay open here meanwhile: new connections wait in the kernel's queue or go to the other workers.

A worker that does not read is killed when too much waits for it, and so is one that hangs (`ztunnel.watchdog`), after it was
asked to say where. Deaths in a row are answered ever more slowly (0.1 s to 5 s).
"""

import asyncio
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ztunnel import framing
from ztunnel.channel import (
    AddDNS,
    AddPod,
    Connections,
    FromWorker,
    PodAdded,
    Profile,
    ProfileKind,
    QueryConnections,
    RemovePod,
    Shutdown,
    Stack,
    TakeProfile,
    ToWorker,
)
from ztunnel.connection_record import ConnectionRecord
from ztunnel.headroom import make_table, withdraw
from ztunnel.openssl_conf import openssl_conf
from ztunnel.shortage import oom_kills
from ztunnel.watchdog import EVERY_S, SPEAKS_EVERY_S, Watchdog, look_at
from ztunnel.worker_process import Worker, how_it_ended

Statement = tuple[ToWorker, Sequence[int]]
"""A message and the descriptors that go with it."""

Answer = Connections | Profile
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STEADY_S = 0.1, 5.0, 30.0
_ANSWER_TIMEOUT_S = 4.0
"""Agents wait 5 s for the answer to an Add, and the first one may come while workers still start."""
_PROFILE_TIMEOUT_S = 10.0
"""For the answer when it is due: what was traced is sorted first."""
_LAST_WORDS_S = 0.5
"""For a worker that hangs, to say where."""
_SILENT_AFTER_S = 10.0
"""A worker says something every second: who says nothing for so long carries nothing either."""
_PIECE_BYTES = 256 << 10
"""Of a large mesh: then others have their turn."""
_NOT_OF_THE_STATE = (AddPod, RemovePod, AddDNS, QueryConnections, TakeProfile, Shutdown)
"""What a worker that is being told the state need not hear: of pods it is told last."""
_TRACE = signal.SIGUSR2
"""Has a worker write to standard error where it is."""
_log = logging.getLogger(__name__)


class OpenConnections(NamedTuple):
    """What the workers carry."""

    records: list[tuple[int, ConnectionRecord]]
    """With the worker's index."""
    silent: int
    """Workers that did not answer: theirs are missing."""


class _Query:
    """What the workers have answered to one question."""

    def __init__(self) -> None:
        self.answers: dict[int, list[Answer]] = {}
        """By worker, in parts; whole."""
        self._begun: dict[int, list[Answer]] = {}

    def hear(self, index: int, part: Answer) -> bool:
        """Whether the worker's answer is whole now."""
        parts = self._begun.setdefault(index, [])
        parts.append(part)
        if isinstance(part, Connections) and part.unfinished:
            return False
        self.answers[index] = self._begun.pop(index)
        return True


class Workers:
    """All workers of this node."""

    def __init__(
        self,
        count: int,
        state: Callable[[int], Iterable[Statement]],
        on_message: Callable[[int, FromWorker], None],
        on_death: Callable[[int], None],
        command: Sequence[str] = (sys.executable, "-m", "ztunnel.worker"),
        pqc: bool = False,
        told: asyncio.Event | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """`state` gives, for worker N, all that a new worker must be told; `on_death` hears that N's connections are gone.

        `pqc`: agree on keys by the post-quantum group alone. `told`: set once there is a state to tell.
        `patience_s`: how long one may hang before it is replaced; 0: for ever.
        """
        self._count = count
        self._state = state
        self._told = told
        self._on_message = on_message
        self._on_death = on_death
        self._command = command
        self.headroom_fd = make_table(count)
        self._openssl_fd = keep_in_memory("openssl.cnf", openssl_conf(ssl.OPENSSL_VERSION_INFO, pqc))
        self._workers: dict[int, Worker] = {}
        self._joining: dict[int, list[bytes]] = {}
        """What was said to all while new workers are told the state."""
        self._ready = asyncio.Event()
        self._answers: dict[int, dict[int, str]] = {}
        """To each AddPod that is waited for, by its number: why not, by worker."""
        self._changed = asyncio.Event()
        self._queries: dict[int, _Query] = {}
        self._query_number = 0
        self._ending = asyncio.Event()
        self._patience_s = patience_s
        self.restarts = self.hangs = 0

    async def run(self) -> None:
        """Keep all workers running, until cancelled: then they are killed."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch()) if self._patience_s else None
                await asyncio.gather(*(group.create_task(self._keep(index)) for index in range(self._count)))
                if watching is not None:
                    watching.cancel()
        finally:
            os.close(self._openssl_fd)
            os.close(self.headroom_fd)

    async def _watch(self) -> None:
        """Replace workers that hang, one at a time."""
        watchdog = Watchdog(self._patience_s)
        while True:
            await asyncio.sleep(EVERY_S)
            now = time.monotonic()
            silent = {one.process.pid: one for one in self._workers.values() if now - one.heard_at > SPEAKS_EVERY_S}
            found = watchdog.judge(now, {pid: (worker.heard_at, look_at(pid)) for pid, worker in silent.items()})
            if found is not None:
                await self._replace(silent[found[0]], found[1])

    async def _replace(self, worker: Worker, evidence: str) -> None:
        heard_at = worker.heard_at
        hang = (worker.index, worker.process.pid, time.monotonic() - heard_at, evidence)
        _log.error("worker %d (process %d) hangs: silent for %.0f s, %s: replacing it", *hang)
        with suppress(ProcessLookupError):
            worker.process.send_signal(_TRACE)
        await asyncio.sleep(_LAST_WORDS_S)
        if worker.heard_at == heard_at and not self._ending.is_set():
            self.hangs += 1
            worker.kill()

    async def _keep(self, index: int) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._ending.is_set():
            started_at, kills = time.monotonic(), oom_kills()
            try:
                code = await self._one_life(index)
                ending = how_it_ended(code, oom_kills() > kills)
            except (OSError, RuntimeError) as error:  # the latter: no thread is left to wait for its end (Python 3.11)
                ending = f"cannot be started: {error}"
            if self._ending.is_set():
                return
            self.restarts += 1
            if time.monotonic() - started_at > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            _log.error("worker %d %s; starting another in %.2g s", index, ending, pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._ending.wait()
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _one_life(self, index: int) -> int:
        worker = Worker(index, self._hear)
        await worker.start(self._command, self._openssl_fd)
        try:
            if self._told is not None:
                await self._told.wait()
            await self._tell_all(worker)
            if self._ending.is_set():
                worker.kill()
            worker.heard_at = time.monotonic()
            self._workers[index] = worker
            self._ready.set()
            return await worker.wait()
        finally:
            worker.kill()
            self._workers.pop(index, None)
            self._joining.pop(index, None)
            withdraw(self.headroom_fd, index)
            self._on_death(index)
            self._changed.set()
            await worker.process.wait()

    async def _tell_all(self, worker: Worker) -> None:
        """Tell a new worker the state: a large mesh, 0.3 s in all, piece by piece, and what changed meanwhile before its pods.

        From its first pod on there is no await: what is said to all from then on finds it among the others.
        """
        self._joining[worker.index] = []
        told_bytes = 0
        for message, fds in self._state(worker.index):
            if isinstance(message, AddPod):
                self._catch_up(worker)
            frame = framing.pack(message, len(fds))
            worker.tell(frame, fds)
            told_bytes += len(frame)
            if told_bytes > _PIECE_BYTES and worker.index in self._joining:
                told_bytes = 0
                await asyncio.sleep(0)
        self._catch_up(worker)

    def _catch_up(self, worker: Worker) -> None:
        for frame in self._joining.pop(worker.index, ()):
            worker.tell(frame)

    @property
    def have_begun(self) -> bool:
        """Whether any worker was ever told the state."""
        return self._ready.is_set()

    @property
    def alive(self) -> list[int]:
        """The indices of running workers."""
        return sorted(self._workers)

    def silent(self, now: float) -> list[str]:
        """Workers that seem to hang, in plain words with the mend."""
        return [
            f"worker {index}, process {pid}, silent for {now - self._workers[index].heard_at:.0f} s: {_mend(pid)}"
            for index, pid in self.pids.items()
            if now - self._workers[index].heard_at > _SILENT_AFTER_S
        ]

    @property
    def pids(self) -> dict[int, int]:
        """Process id by index."""
        return {index: worker.process.pid for index, worker in sorted(self._workers.items())}

    def broadcast(self, message: ToWorker, fds: Sequence[int] = ()) -> None:
        """Tell every worker."""
        frame = framing.pack(message, len(fds))
        for worker in list(self._workers.values()):
            worker.tell(frame, fds)
        if not isinstance(message, _NOT_OF_THE_STATE):
            for changes in self._joining.values():
                changes.append(frame)

    async def add_pod(self, message: AddPod, fds: Sequence[int]) -> str:
        """Tell every worker of a pod and wait for the answers: the first error, empty when all serve it."""
        answers = self._answers[message.number] = {}
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await self._ready.wait()
                self.broadcast(message, fds)
                while self._workers.keys() - answers.keys() or not self._workers:
                    self._changed.clear()
                    await self._changed.wait()
            return next((error for error in answers.values() if error), "")
        except TimeoutError:
            return "the data workers do not answer" if self._workers else "no data worker is running"
        finally:
            del self._answers[message.number]

    async def await_serving(self) -> None:
        """Return when workers have come and answer, or do not in time."""
        await self._ready.wait()
        await self.query_connections()

    async def query_connections(self) -> OpenConnections:
        """Those of all workers; of who does not answer in time there are none."""
        answers, silent = await self._query(QueryConnections, _ANSWER_TIMEOUT_S)
        parts = [(index, part) for index, answer in answers.items() for part in answer if isinstance(part, Connections)]
        return OpenConnections([(index, record) for index, part in parts for record in part.records], silent)

    async def take_profiles(self, kind: ProfileKind, seconds: int, frequency: int) -> dict[int, list[Stack]]:
        """What all workers do meanwhile, by index; those that do not answer in time are left out."""
        due_s = seconds + _PROFILE_TIMEOUT_S
        answers, _ = await self._query(lambda number: TakeProfile(number, kind, seconds, frequency), due_s)
        return {index: part.stacks for index, answer in answers.items() for part in answer if isinstance(part, Profile)}

    async def _query(self, question: Callable[[int], ToWorker], timeout_s: float) -> tuple[dict[int, list[Answer]], int]:
        """The answers to a question with a number of its own, by index and in their parts; how many workers owe theirs."""
        self._query_number += 1
        number = self._query_number
        query = self._queries[number] = _Query()
        asked = dict(self._workers)
        try:
            self.broadcast(question(number))
            async with asyncio.timeout(timeout_s):
                while self._owing(asked, query):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("%d of %d workers did not answer in time", self._owing(asked, query), len(asked))
        finally:
            del self._queries[number]
        return dict(sorted(query.answers.items())), self._owing(asked, query)

    def _owing(self, asked: dict[int, Worker], query: _Query) -> int:
        """How many have yet to answer, of those that are alive still: who came in the place of one was not asked."""
        return sum(index not in query.answers and self._workers.get(index) is one for index, one in asked.items())

    def _hear(self, index: int, message: FromWorker) -> None:
        if isinstance(message, PodAdded):
            if (answers := self._answers.get(message.number)) is not None:
                answers[index] = message.error
                self._changed.set()
            elif message.error:
                _log.error("worker %d cannot serve pod %s: %s", index, message.uid, message.error)
        elif isinstance(message, Connections | Profile):
            if (query := self._queries.get(message.number)) is not None and query.hear(index, message):
                self._changed.set()
        else:
            self._on_message(index, message)

    async def shut_down(self, deadline_s: float) -> None:
        """Let every worker drain and end, for at most `deadline_s`; `run` then returns."""
        self._ending.set()
        self.broadcast(Shutdown(deadline_s))
        exits = [asyncio.ensure_future(worker.process.wait()) for worker in self._workers.values()]
        if exits:
            await asyncio.wait(exits, timeout=deadline_s + 1.0)
        for worker in list(self._workers.values()):
            worker.kill()


def _mend(pid: int) -> str:
    look = look_at(pid)
    return f"it is stopped: kill -CONT {pid}" if look is not None and look.is_stopped else "kill it if it stays so"


def keep_in_memory(name: str, text: str) -> int:
    """A descriptor of a file in no folder."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, text.encode())
    return fd
