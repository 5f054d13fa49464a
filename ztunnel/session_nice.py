"""How much a worker's session gives way to others: its nice value, by which the kernel shares CPUs out among sessions.

Where processes are in no cgroup of the cpu controller, the kernel groups them by session (sched(7), "The autogroup feature"),
and a process's own nice value counts only among those of its session. So each worker leads one of its own
(ztunnel.worker_process). In a container its cgroup counts in the place of sessions, and nothing that is said here changes
anything.
"""

BEHIND = 5
"""A third of what others have where all want the CPU; and who is woken is let in before."""
_FILE = "/proc/self/autogroup"


class SessionNice:
    """Of this process's session, which must be its own."""

    def __init__(self) -> None:
        self._nice = 0

    def set(self, nice: int) -> None:
        """Ask for it unless it is so already; to be called again and again: without CAP_SYS_ADMIN the kernel may put it off."""
        if nice != self._nice:
            try:
                with open(_FILE, "w", encoding="ascii") as file:
                    file.write(str(nice))
            except OSError:
                return  # put off, or no kernel that groups by session
            self._nice = nice
