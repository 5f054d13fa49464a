"""One run: what is measured on a stage, in which order. What fails is noted in the result, and the rest is measured."""

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench import accounts, alone, budget, contenders, events, idle_connections, large_mesh
from bench.contenders import Contender, Load
from bench.image import Image
from bench.line_up import weft_pids, workers_of
from bench.report import Results
from bench.stage import LoadError, Stage, pids_of
from lab.client import LabError

_TOLERATED = 3
"""Loads that fail: each may take half a minute to say so."""
FAILURES = (RuntimeError, OSError, LabError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Run:
    """Contenders on a stage, and what came out."""

    made: Stage
    found: Sequence[Contender]
    proxies: ExitStack
    """Runs the contenders that are not weft."""
    results: Results
    rounds: int
    quick: bool
    image: Image | None
    say: Callable[[str], None]

    @property
    def proxied(self) -> list[Contender]:
        """Those across nodes with a proxy."""
        return [one for one in self.found if one.name in contenders.PROXIED]

    def measure(self) -> None:
        """Everything. Raises: one of FAILURES where not even the paired rounds could be measured."""
        for one in self.found:
            one.await_answer()
            one.measure("exchanges", seconds=0.3)  # certificates, pools and code are warm before the first round
        self.paired(self.found, contenders.loads(self.quick), self.rounds)
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("the hot path's budget", self._budget),
            ("at fixed rates", self._paced),
            ("memory", self._memory),
            ("policy evaluation", self._policy_cost),
            ("small messages beside bulk", self._beside_bulk),
            ("names", self._names),
            ("enrolment and policy", self._events),
            ("a new peer for each connection", self._fresh),
            ("start-up", self._start_up),
            ("restart", self._restart),
            ("a large mesh", self._large_mesh),  # the last: see there
        )
        for name, step in steps:
            self.say(name)
            try:
                step()
            except FAILURES as error:
                self.say(f"{name}: failed: {error}")
                self.results.failures.append(f"{name}: {error}")

    def paired(self, found: Sequence[Contender], loads: Sequence[Load], rounds: int) -> None:
        """Every contender under every load, once a round; those who are judged as often as the load says."""
        for number in range(rounds):
            stolen = accounts.stolen_s()
            for load in loads:
                for turn in range(load.times):
                    self._turn(
                        [one for one in found if contenders.takes_part(one, load, turn)], load, number * load.times + turn
                    )
            now = {"loadavg": os.getloadavg()[0], "stolen_s": accounts.stolen_s() - stolen}
            self.results.conditions.append(now)
            self.say("round {} of {}, load {loadavg:.1f}, stolen {stolen_s:.2f} s".format(number + 1, rounds, **now))

    def _turn(self, found: Sequence[Contender], load: Load, number: int) -> None:
        """One load, one contender after the other. A failed one has no figure; Raises: LoadError for the one too many."""
        for one in contenders.in_turn(found, f"{load.key} {number}"):
            try:
                self.results.take(number, (one.name, load.key), one.measure(load.order, **load.details))
            except LoadError as error:
                self.results.failures.append(str(error))
                if len(self.results.failures) > _TOLERATED:
                    raise

    def _budget(self) -> None:
        self._budgets(budget.warm_loads(self.quick))
        self.results.notes += [f"the budget is incomplete: apt-get install {package}" for package in budget.missing_tools()]

    def _budgets(self, loads: Sequence[budget.Load]) -> None:
        both = [*workers_of(self.made, "a"), *workers_of(self.made, "b")]
        self.results.budgets += budget.budgets([one for one in self.found if one.name in contenders.JUDGED], both, loads)

    def _paced(self) -> None:
        judged = [one for one in self.found if one.name in alone.PACED]
        self.paired(judged, alone.paced_loads(self.quick), self.rounds)
        self.results.alone += alone.paced_rows(self.results.rounds)

    def _memory(self) -> None:
        for part in ("agent", "ztunnel"):
            for pid in sorted(self.made.node_pids(part)):
                self._weigh(pid, f"weft {accounts.command_of(pid)}")
        for pid in pids_of(self.made.layout.control_cgroup):
            self._weigh(pid, "weft control")
        for one in self.proxied:
            for pid in one.pids() if one.name != contenders.WEFT else ():
                self._weigh(pid, one.name)
        self.results.alone.append(alone.idle_memory(self.made))
        self.results.alone += idle_connections.held_memory(self.made, self.found, 1 if self.quick else 3)

    def _weigh(self, pid: int, name: str) -> None:
        self.results.memory.append({"process": name, "state": "idle, warm", "pss_bytes": accounts.pss_bytes(pid)})

    def _policy_cost(self) -> None:
        self.results.alone += alone.policy_rows(self.image)

    def _beside_bulk(self) -> None:
        seconds = 0.5 if self.quick else 1.5
        rounds = 1 if self.quick else max(3, self.rounds // 2)
        self.results.alone += alone.beside_bulk(self.found, rounds, seconds, self.say)

    def _names(self) -> None:
        self.results.alone.append(alone.names(self.made, self.rounds // 2 or 1, 0.5 if self.quick else 3.0))

    def _events(self) -> None:
        times = 5 if self.quick else 20
        self.results.events["enrol a pod: request to answer"] = events.enrolments(self.made, times)
        for name, figure in events.policies(self.made, times).items():
            self.results.events[f"policy: apply or delete until {name}"] = figure

    def _fresh(self) -> None:
        self.paired(self.proxied, [contenders.fresh(self.quick)], self.rounds)
        self._budgets([budget.new_peers(self.quick)])
        self.proxies.close()

    def _start_up(self) -> None:
        self.results.alone.append(alone.start_up(self.made, 2 if self.quick else 5))

    def _restart(self) -> None:
        self.results.alone += alone.restart(self.made)

    def _large_mesh(self) -> None:
        self.results.alone += large_mesh.rows(self.made)


def lay_out(made: Stage, layout: str, others: Sequence[int]) -> None:
    """Put processes on CPUs."""
    if layout == "free":
        return
    last = {(os.cpu_count() or 1) - 1}
    clients = [
        pid for client in made.clients.values() for pid in pids_of(made.layout.pod_cgroup(client.place.node, client.place.key))
    ]
    accounts.pin([*weft_pids(made), *made.pod_pids(), *others], last)
    begun_later = [os.getpid()]  # clients that are started for one load have their place from who starts them
    accounts.pin([*clients, *begun_later], {0} if layout == "split" else last)
