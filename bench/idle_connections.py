"""What connections cost that are open and idle: both nodes' proxies, and the kernel on their behalf."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from bench import accounts, contenders
from bench.contenders import Contender
from bench.figures import Figure
from bench.stage import Stage, without_time_wait
from bench.targets import Judged

HELD = 1000
_LIMIT_MB = 12.0
_SETTLE_S, _RCU_S, _READINGS = 0.7, 0.1, 5


@dataclass(slots=True)
class _Weighed:
    """One contender; bytes, round by round."""

    one: Contender
    processes: list[int] = field(default_factory=list)
    kernel: list[int] = field(default_factory=list)

    def weigh(self) -> None:
        """Open connections beside those of the rounds before, and see what there is more."""
        pids = [pid for pid in self.one.pids() if accounts.command_of(pid) not in contenders.ASIDE]
        kernel, processes = _settled_kernel_bytes(), _pss_bytes(pids)
        self.one.client.run("hold", host=self.one.host, port=self.one.port, connections=HELD)
        self.kernel.append(_settled_kernel_bytes() - kernel)
        self.processes.append(_pss_bytes(pids) - processes)


def held_memory(made: Stage, found: Sequence[Contender], rounds: int) -> list[Judged]:
    """What 1,000 idle connections cost, less the applications' own sockets, which are what they cost without a proxy.

    They stay until the last round is over: what a proxy has once taken it keeps for later, and would grow by less.
    """
    everyone = [_Weighed(one) for one in found if one.name in (contenders.DIRECT, *contenders.PROXIED)]
    with without_time_wait(made.layout):
        for number in range(rounds):
            first = number % len(everyone)
            for weighed in (*everyone[first:], *everyone[:first]):
                weighed.weigh()
        for client in made.clients.values():
            client.run("release")
    direct = next(weighed for weighed in everyone if weighed.one.name == contenders.DIRECT)
    return [_row(weighed, direct) for weighed in everyone if weighed is not direct]


def _row(weighed: _Weighed, direct: _Weighed) -> Judged:
    processes = [size / 1e6 for size in weighed.processes]
    kernel = [(late - early) / 1e6 for late, early in zip(weighed.kernel, direct.kernel, strict=True)]
    whole = Figure.of([sum(parts) for parts in zip(processes, kernel, strict=True)])
    row = Judged.of(
        f"memory of {HELD:,} idle connections, both nodes, kernel included: {weighed.one.name}",
        whole,
        _LIMIT_MB if weighed.one.name == contenders.WEFT else None,
        "MB",
    )
    parts = f"processes {median(processes):.1f}, kernel {median(kernel):.1f}"
    return row.noted(f"[{whole.low:.1f} to {whole.high:.1f}] ({parts})")


def _pss_bytes(pids: Sequence[int]) -> int:
    return sum(map(accounts.pss_bytes, pids))


def _settled_kernel_bytes() -> int:
    """What the kernel's objects hold that somebody uses, when what comes and goes is gone: the least of a few readings.

    Without what it remembers of files that nobody has open, and what its CPUs keep at hand for later: some megabytes each.
    """
    time.sleep(_SETTLE_S)
    return min(_kernel_bytes() for _ in range(_READINGS))


def _kernel_bytes() -> int:
    accounts.forget_files()
    time.sleep(_RCU_S)  # what was forgotten is given back after a grace period
    accounts.shrink_slabs()
    return accounts.kernel_bytes()
