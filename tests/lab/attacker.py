"""A hostile peer: what a test makes it say to a proxy, from inside a pod, and the honest one that works beside it.

Runs in the pod as `python3 -c` of this text behind those of the two modules that it imports (see PROGRAM), and by the same
lines as tests.lab.inside; so standard library only. The frames come from the test. Bytes travel as base64.
"""

import base64
import contextlib
import itertools
import json
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import Any

from tests.lab.link import Link, Papers
from tests.lab.witness import Witness

_HEADERS, _RST_STREAM, _GOAWAY = 1, 3, 7
_RESET = struct.pack("ii", 1, 0)


class Inside:
    """The attacker's links by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._links: dict[int, Link] = {}
        self._crowds: dict[int, list[socket.socket]] = {}
        self._witnesses: dict[int, Witness] = {}
        self._listeners: dict[int, socket.socket] = {}

    def speak(
        self, host: str, port: int, papers: Papers | None, data: str, repeat: int = 1, read: bool = True, timeout_s: float = 20
    ) -> dict[str, Any]:
        """Connect, say it all, listen until the end: what was said, how it ended, what came last, bytes sent, own port."""
        with socket.create_connection((host, port), 10) as sock:
            link = Link(sock, papers)
            link.exchange(base64.b64decode(data), repeat, read, lambda: False, timeout_s)
            return _report(link)

    def open(self, host: str, port: int, papers: Papers, data: str) -> int:
        """A connection that stays, after first words: its number."""
        link = Link(socket.create_connection((host, port), 10), papers)
        link.exchange(base64.b64decode(data), 1, True, lambda: link.sent > 0 and len(link.said) > 0, 10)
        number = next(self._numbers)
        self._links[number] = link
        return number

    def ask(self, number: int, data: str, sid: int) -> list[tuple[int, int, str]]:
        """Say something on a connection that stays; type, flags and payload of the frames on stream `sid` that answer."""
        link, found = self._links[number], []

        def answered() -> bool:
            found.extend([one for one in link.frames() if one[2] == sid])
            return any(one[0] in (_HEADERS, _RST_STREAM) for one in found)

        link.exchange(base64.b64decode(data), 1, True, answered, 10)
        if not found:
            raise RuntimeError(f"no answer on stream {sid}: {link.end}")
        return [(kind, flags, _text(payload)) for kind, flags, _, payload in found]

    def insist(self, number: int, data: str, repeat: int, read: bool, timeout_s: float = 20) -> dict[str, Any]:
        """Say something again and again on a connection that stays, until it does not any more: see `speak`."""
        link = self._links.pop(number)
        with link.sock:
            link.exchange(base64.b64decode(data), repeat, read, lambda: False, timeout_s)
            return _report(link)

    def close(self, number: int) -> None:
        """End a connection that stays."""
        self._links.pop(number).sock.close()

    def besiege(
        self,
        host: str,
        port: int,
        papers: Papers | None,
        opening: str,
        attacks: list[str],
        seconds: float,
        at_once: int = 4,
        repeat: int = 1,
        read: bool = True,
    ) -> dict[str, Any]:
        """Come back with the next attack as soon as one is over: how they ended and their codes, by how many; longest life."""
        until, first = time.monotonic() + seconds, base64.b64decode(opening)
        queue = itertools.cycle([base64.b64decode(one) for one in attacks])
        ends: list[str] = []
        codes: list[str] = []
        lives = [0.0]

        def assault(attack: bytes) -> None:
            began = time.monotonic()
            with socket.create_connection((host, port), 10) as sock:
                link = Link(sock, papers)
                if repeat > 1:
                    link.exchange(first, 1, True, lambda: bool(link.sent and link.said), 10)
                    link.exchange(attack, repeat, read, lambda: False, 20)
                else:
                    link.exchange(first + attack, 1, read, lambda: False, 20)
                ends.append(link.end)
            found = [payload[4:8] for kind, _, _, payload in link.frames() if kind == _GOAWAY] if papers else []
            codes.append(str(int.from_bytes(found[-1], "big")) if found else "none")
            lives.append(time.monotonic() - began)

        def storm() -> None:
            while time.monotonic() < until:
                try:
                    assault(next(queue))
                except OSError as error:
                    ends.append(type(error).__name__)

        threads = [threading.Thread(target=storm) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"ends": dict(Counter(ends)), "codes": dict(Counter(codes)), "longest_s": max(lives)}

    def undermine(self, host: str, port: int, papers: Papers, opening: str, manner: str, seconds: float) -> dict[str, Any]:
        """Beneath HTTP/2: `keys`, KeyUpdates that want an answer; `records`, DATA with a record for each of its bytes;
        `greetings`, one handshake after the other; `tunnels`, 60 at once, each with small DATA as fast as it is taken."""
        until = time.monotonic() + seconds
        ends: list[str] = []
        first = base64.b64decode(opening)

        def assault(all_of_them: contextlib.ExitStack) -> None:
            links = []
            for _ in range(60 if manner == "tunnels" else 1):
                links.append(Link(all_of_them.enter_context(socket.create_connection((host, port), 10)), papers))
                links[-1].exchange(first, 1, True, lambda: bool(links[-1].sent and links[-1].said), 10)
            if manner == "keys":
                links[0].pour(lambda: links[0].update_keys(1000), until)
            elif manner == "records":
                links[0].pour(lambda: links[0].records(_frame_head(2048) + bytes(2048)), until)
            elif manner == "tunnels":
                while time.monotonic() < until and not any(link.end for link in links):
                    for link in links:
                        link.offer((_frame_head(2) + b"xy") * 120)
            ends.extend([link.end or "end" for link in links])

        while time.monotonic() < until:
            try:
                with contextlib.ExitStack() as all_of_them:
                    assault(all_of_them)
            except OSError as error:
                ends.append(type(error).__name__)
        return {"ends": dict(Counter(ends)), "codes": {}}

    def flood(self, host: str, port: int, manner: str, words: list[str], seconds: float, at_once: int = 2) -> dict[str, Any]:
        """Without TLS: `datagrams`; `streams` of words whose answers are read; `asks`, each on a connection of its own;
        `closes`, connections that are reset as soon as they are there; `bursts` of 400 that come at once and go. How many, and
        what failed."""
        until = time.monotonic() + seconds
        done: Counter[str] = Counter()
        payloads = [base64.b64decode(one) for one in words]

        def storm() -> None:
            for word in itertools.cycle(payloads):
                if time.monotonic() >= until:
                    return
                try:
                    getattr(self, f"_{manner}")(host, port, word, until)
                    done["ended"] += 1
                except OSError as error:
                    done[type(error).__name__] += 1

        threads = [threading.Thread(target=storm) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"ends": dict(done), "codes": {}}

    def _datagrams(self, host: str, port: int, word: bytes, until: float) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            for _ in range(200):
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    sock.send(word)
                    while sock.recv(4096, socket.MSG_DONTWAIT):
                        pass

    def _streams(self, host: str, port: int, word: bytes, until: float) -> None:
        with socket.create_connection((host, port), 10) as sock:
            Link(sock, None).exchange(word, 1000, True, lambda: time.monotonic() >= until, 10)

    def _asks(self, host: str, port: int, word: bytes, until: float) -> None:
        with socket.create_connection((host, port), 10) as sock:
            sock.settimeout(10)
            sock.sendall(word)
            while sock.recv(1 << 16):
                pass

    def _closes(self, host: str, port: int, word: bytes, until: float) -> None:
        with socket.create_connection((host, port), 10) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _bursts(self, host: str, port: int, word: bytes, until: float) -> None:
        with contextlib.ExitStack() as all_of_them:
            for _ in range(400):
                sock = all_of_them.enter_context(socket.socket())
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect((host, port))

    # Crowds

    def crowd(self, host: str, port: int, papers: Papers, count: int, manner: str, opening: str = "") -> int:
        """Connections that are `silent`, begin a handshake and leave it at that (`half`), end it and say nothing (`shaken`),
        or say an opening and nothing more (`idle`): the crowd's number. Who is shown out meanwhile is still one of them."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
        number = next(self._numbers)
        crowd = self._crowds[number] = []
        for _ in range(count):
            sock = socket.create_connection((host, port), 10)
            crowd.append(sock)
            if manner == "half":
                Link(sock, {}).begin()
            elif manner != "silent":
                link = Link(sock, papers)
                first = base64.b64decode(opening) if manner == "idle" else b""
                link.exchange(first, 1, True, lambda link=link: link.greeted and not link.sending, 10)  # type: ignore[misc]
        return number

    def cut(self, number: int) -> int:
        """How many of a crowd have been cut off by the other end."""
        poll = select.poll()
        for sock in self._crowds[number]:
            poll.register(sock, select.POLLRDHUP)
        return len(poll.poll(0))

    def disperse(self, number: int) -> None:
        """Let a crowd go."""
        for sock in self._crowds.pop(number):
            sock.close()

    # A false server

    def pose(self, port: int) -> int:
        """Listen in somebody else's place: the listener's number."""
        sock = socket.create_server(("", port), backlog=64)
        number = next(self._numbers)
        self._listeners[number] = sock
        return number

    def visit(self, number: int, papers: Papers | None, answer: str, timeout_s: float = 15) -> dict[str, Any]:
        """Serve one visitor with these papers, answering with `answer`, and hear it to the end."""
        listener = self._listeners[number]
        listener.settimeout(timeout_s)
        sock, _ = listener.accept()
        with sock:
            link = Link(sock, papers, server=True)
            link.exchange(base64.b64decode(answer), 1, True, lambda: False, timeout_s)
            return _report(link)

    def unpose(self, number: int) -> None:
        """Stop listening."""
        self._listeners.pop(number).close()

    # The honest neighbour

    def watch(self, host: str, port: int, papers: Papers, opening: str, block: str) -> int:
        """Use the victim's service as a good peer, until `verdict`: the witness's number."""
        number = next(self._numbers)
        self._witnesses[number] = Witness(host, port, papers, base64.b64decode(opening), base64.b64decode(block))
        return number

    def rest(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def lap(self, number: int) -> dict[str, list[float]]:
        """What a witness has measured since the last lap."""
        return self._witnesses[number].lap()

    def verdict(self, number: int) -> dict[str, Any]:
        """What a witness saw."""
        return self._witnesses.pop(number).stop()

    def dial(self, host: str, port: int, mark: int, text: str, timeout_s: float) -> str:
        """A plain connection with a mark on its socket: `refused`, `reset`, `end`, `silent`, or what was answered."""
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.settimeout(timeout_s)
            try:
                sock.connect((host, port))
                sock.sendall(text.encode())
                return sock.recv(100).decode() or "end"
            except ConnectionRefusedError:
                return "refused"
            except (ConnectionResetError, BrokenPipeError):
                return "reset"
            except TimeoutError:
                return "silent"


def _frame_head(length: int) -> bytes:
    """Of DATA on the first stream."""
    return length.to_bytes(3, "big") + b"\0\0\0\0\0\1"


def _report(link: Link) -> dict[str, Any]:
    return {"said": _text(link.said), "end": link.end, "last": _text(link.last), "sent": link.sent, "port": link.port}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _step_back() -> None:
    """To the lowest priority, the whole session: where sessions share the CPU evenly (autogroup), niceness counts in one."""
    os.nice(19)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
        group.write("19")


def main() -> None:
    """Obey until standard input ends; with the argument `patient` only while nobody else wants the CPU."""
    os.setsid()  # as a pod has a group of its own: not the test's, with all other puppets
    if "patient" in sys.argv:
        _step_back()
    inside, writing = Inside(), threading.Lock()

    def obey(order: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": order["id"]}
        try:
            answer["value"] = getattr(inside, order["call"])(*order["args"])
        except Exception as error:  # whatever it is, the test must hear it
            answer.update(error=type(error).__name__, text=str(error))
        with writing:
            print(json.dumps(answer), flush=True)

    for line in sys.stdin:
        threading.Thread(target=obey, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
