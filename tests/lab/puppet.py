"""A process inside a pod that does what a test says: sockets over there, asserted upon here. See tests.lab.inside."""

import builtins
import contextlib
import itertools
import json
import subprocess
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.world import eventually

PROGRAM = Path(__file__).with_name("inside.py").read_text()
ARGV = ("python3", "-u", "-c", PROGRAM)
_GRACE_S = 5.0
_PATIENCE_S = 40.0
_SOON_S = 25.0
"""Less than agents wait until they look at older connections again, and proxies until they give up a tunnel that is silent."""


class Puppet:
    """One process in a pod, or of a node's host; usable from several threads."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"])
            if "error" not in answer:
                future.set_result(answer["value"])
                continue
            kind = getattr(builtins, answer["error"], RuntimeError)
            future.set_exception(kind(answer["text"]) if issubclass(kind, OSError) else RuntimeError(str(answer)))
        for future in list(self._waiting.values()):
            future.set_exception(RuntimeError("the process in the pod has ended"))

    def start(self, call: str, *args: Any) -> "Future[Any]":
        """Begin a method of `Inside`: its answer to come."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"id": number, "call": call, "args": args}) + "\n")
            self._process.stdin.flush()
        return future

    def do(self, call: str, *args: Any, timeout_s: float = 150.0) -> Any:
        """Call a method of `Inside`. Raises: the OSError it met there; RuntimeError for any other failure."""
        return self.start(call, *args).result(timeout_s)

    def listen(self, port: int, receive_buffer: int = 0) -> "Listener":
        """A dual-stack listener over there."""
        return Listener(self, self.do("listen", port, receive_buffer))

    def echo(self, port: int) -> None:
        """Answer on a port for the rest of the process's life."""
        self.do("echo", port)

    def connect(self, host: str, port: int, timeout_s: float = _PATIENCE_S) -> "Wire":
        """A connection from there. Raises: OSError as over there."""
        return Wire(self, self.do("connect", host, port, timeout_s))

    def ask(self, host: str, port: int, text: str = "ping", patience_s: float = _PATIENCE_S) -> str:
        """A new connection to an echo, one question, its answer (short when it ended before). Raises: OSError."""
        with self.connect(host, port, patience_s) as wire:
            wire.send(text)
            return wire.receive(len(text), patience_s)

    def fate(self, host: str, port: int, text: str = "ping", patience_s: float = 15.0) -> str:
        """What becomes of a new connection to an echo: `answered`, `refused`, `reset`, `end` or `silent`.

        A connection that is reset may say so inside connect() as well as later: both are `reset`.
        """
        try:
            return "answered" if self.ask(host, port, text, patience_s) == text else "end"
        except TimeoutError:
            return "silent"
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            assert isinstance(error, ConnectionResetError | BrokenPipeError), error
            return "reset"

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_GRACE_S)
        self._process.stdout.close()


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket over there. A context manager."""

    puppet: Puppet
    number: int

    def accept(self, timeout_s: float = _PATIENCE_S) -> "Wire":
        """Its next connection. Raises: TimeoutError."""
        return Wire(self.puppet, self.puppet.do("accept", self.number, timeout_s))

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.puppet.do("close", self.number, False)


class Wire:
    """A connected socket over there. A context manager; every method raises what it meets there."""

    def __init__(self, puppet: Puppet, number: int) -> None:
        self.puppet, self.number = puppet, number
        self._open = True

    def send(self, text: str) -> None:
        """Send all of it."""
        self.puppet.do("send", self.number, text)

    def receive(self, size: int, timeout_s: float = _PATIENCE_S) -> str:
        """Exactly `size` characters, or fewer at the end."""
        return str(self.puppet.do("receive", self.number, size, timeout_s))

    def says(self, text: str) -> bool:
        """Whether an echo at the far end answers."""
        self.send(text)
        return self.receive(len(text)) == text

    def ended(self, timeout_s: float = _SOON_S) -> str:
        """Wait for its end: `end` when it was in order, `reset` otherwise. Raises: TimeoutError when it lives on."""
        try:
            return "more" if self.receive(1, timeout_s) else "end"
        except TimeoutError:
            raise
        except OSError:
            return "reset"

    def finish(self) -> None:
        """Half-close."""
        self.puppet.do("finish", self.number)

    def standstill(self) -> int:
        """How many bytes a `pour` over there could write once it writes no more: somebody holds it back."""
        seen = [-1]

        def still() -> bool:
            seen.append(int(self.puppet.do("poured", self.number)))
            return seen[-1] > 0 and len(set(seen[-8:])) == 1

        eventually(still)
        return seen[-1]

    def assert_both_ways(self, other: "Wire", size: int) -> None:
        """This end and the connection's other one send `size` bytes at once, and each gets those of the other."""
        ends = (self, other)
        drained = [one.puppet.start("drain", one.number) for one in ends]
        poured = [one.puppet.start("pour", one.number, size) for one in ends]
        expected = [{"size": size, "sha256": one.result(240)} for one in reversed(poured)]
        assert [one.result(240) for one in drained] == expected

    def names(self) -> dict[str, Any]:
        """`local`, `peer`, and `original` (SO_ORIGINAL_DST, or None)."""
        return dict(self.puppet.do("names", self.number))

    def close(self, reset: bool = False) -> None:
        """Close, in order or by a reset."""
        if self._open:
            self._open = False
            self.puppet.do("close", self.number, reset)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
