"""Where one connection of a pod was sent so far and where else it may go: to another endpoint, or where the mesh has it now."""

from ztunnel.balance import NOBODY
from ztunnel.outliers import Choice
from ztunnel.pod import Pod
from ztunnel.route import Refused, Request
from ztunnel.ways import Way


class Attempts:
    """Those of one connection, of which there are a few at most."""

    __slots__ = ("_avoid", "_decided", "_generation", "_pod", "_request", "count")

    def __init__(self, pod: Pod, request: Request) -> None:
        """`request`: what its application asked for."""
        self.count = 1
        self._pod = pod
        self._request = request
        self._avoid = NOBODY
        self._decided: Way | None = None
        """The way, before its hostname had an address."""
        self._generation = 0
        """Of the mesh by which it was decided."""

    @property
    def is_last(self) -> bool:
        """Whether there will be no other one, whoever fails."""
        return self.count >= self._pod.node.config.tuning.endpoint_attempts

    def begin(self, way: Way) -> None:
        """This is where it goes."""
        self._decided, self._generation = way, self._pod.node.generation

    def failed(self, choice: Choice | None) -> bool:
        """Remember who failed, where others could have been chosen; whether that is so."""
        if choice is None:
            return False
        self._pod.outliers.failed(choice, self._pod.node.loop.now)
        self._avoid |= {choice.uid}
        return True

    def another(self, told: Way | None) -> Way | None:
        """The way of one more attempt; None: nowhere, or there were enough of them.

        `told`: where the connection goes as far as others were told of it; it stays that, unless the mesh has changed.
        """
        if self.is_last:
            return None
        node, way = self._pod.node, told
        if way is None or self._generation != node.generation:
            outcome = self._pod.ways.find(self._request, self._avoid)
            way = outcome if isinstance(outcome, Way) else None
        # A service that is gone meanwhile has no other endpoints: its address alone would be dialled in plain.
        if way is None or way.route.workload is None:
            return None
        node.retries += 1
        self.count += 1
        return way

    def elsewhere(self) -> Way | Refused | None:
        """Where the connection would go now, if the mesh changed while it waited and that is elsewhere (`Ways.elsewhere`)."""
        generation, decided = self._pod.node.generation, self._decided
        if generation == self._generation or decided is None:
            return None
        self._generation = generation
        return self._pod.ways.elsewhere(self._request, decided.route, self._avoid)
