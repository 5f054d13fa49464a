"""Where this process spends its time, or what holds its memory: stacks, taken while it does its work.

CPU: the kernel sends a signal each time the process has used a little more of it, and the handler counts the stack that the
main thread is in; what a C function takes is its caller's. So who waits costs nothing and is not seen.
Memory: blocks that were allocated while tracing is on and are there at its end. Tracing costs as much as the program itself.
"""

import signal
import time
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType

from ztunnel.channel import Place, ProfileKind, Stack

MAX_STACKS = 4096
"""Different ones; beyond them a sample counts for its innermost place alone."""
MAX_DEPTH = 48
_Stack = tuple[tuple[CodeType, int], ...]


def begin(kind: ProfileKind, frequency: int) -> Callable[[], list[Stack]]:
    """Begin to watch this process; the result ends that and tells what was seen. `frequency`: samples a second of CPU time."""
    return _trace_memory() if kind == "heap" else CPUSampler(frequency).stop


class CPUSampler:
    """Counts stacks until it is stopped. One at a time in a process."""

    def __init__(self, frequency: int) -> None:
        self._seen: Counter[_Stack] = Counter()
        self._began_s = time.process_time()
        signal.signal(signal.SIGPROF, self._sample)
        signal.siginterrupt(signal.SIGPROF, False)  # libraries with threads of their own go on with what they wait for
        signal.setitimer(signal.ITIMER_PROF, 1 / frequency, 1 / frequency)

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        stack: list[tuple[CodeType, int]] = []
        while frame is not None and len(stack) < MAX_DEPTH:
            code = frame.f_code
            stack.append((code, frame.f_lineno or code.co_firstlineno))
            frame = frame.f_back
        seen = tuple(stack)
        if len(self._seen) >= MAX_STACKS and seen not in self._seen:
            seen = seen[:1]
        self._seen[seen] += 1

    def stop(self) -> list[Stack]:
        """What was seen; the CPU time that the process used meanwhile is shared out among the samples, in nanoseconds."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one may be on its way still, and would end the process
        spent_ns = int((time.process_time() - self._began_s) * 1e9)
        samples = self._seen.total()
        return [
            (tuple(_place(code, line) for code, line in stack), count, spent_ns * count // samples)
            for stack, count in self._seen.items()
        ]


def _place(code: CodeType, line: int) -> Place:
    return code.co_qualname, code.co_filename, code.co_firstlineno, line


def _trace_memory() -> Callable[[], list[Stack]]:
    import tracemalloc  # only here: who is never asked needs no such code in memory

    tracemalloc.start(MAX_DEPTH)

    def stop() -> list[Stack]:
        traces = tracemalloc.take_snapshot().traces
        tracemalloc.stop()
        blocks: Counter[tuple[Place, ...]] = Counter()
        held: Counter[tuple[Place, ...]] = Counter()
        for trace in traces:
            stack = tuple(("", frame.filename, 0, frame.lineno) for frame in reversed(trace.traceback))
            if len(blocks) >= MAX_STACKS and stack not in blocks:
                stack = stack[:1]
            blocks[stack] += 1
            held[stack] += trace.size
        return [(stack, count, held[stack]) for stack, count in blocks.items()]

    return stop
