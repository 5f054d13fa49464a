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
from collections.abc import Iterator
from typing import Any

from tests.lab.link import Frame, Link, Papers
from tests.lab.witness import PING, Pulse, Span, Witness, length_s, pong

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
        self._talking = threading.Lock()

    def speak(
        self, host: str, port: int, papers: Papers | None, data: str, repeat: int = 1, read: bool = True, timeout_s: float = 60
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

    def keep(self, number: int) -> None:
        """Answer the PINGs of a connection that stays, which is given up otherwise when it is long until the next question."""
        threading.Thread(target=self._keep, args=(self._links[number],), daemon=True).start()

    def _keep(self, link: Link) -> None:
        while not link.end:
            select.select([link.sock], [], [], 0.5)
            with self._talking:
                link.receive()  # maybe half a frame: the rest is for the next turn
                _answer_pings(link, link.frames())

    def ask(self, number: int, data: str, sid: int) -> list[tuple[int, int, str]]:
        """Say something on a connection that stays; type, flags and payload of the frames on stream `sid` that answer,
        up to its end where it is refused."""
        link = self._links[number]
        found: list[Frame] = []
        others: list[Frame] = []

        def answered() -> bool:
            for one in link.frames():
                (found if one[2] == sid else others).append(one)
            return any(kind == _RST_STREAM or (kind == _HEADERS and not flags & 1) for kind, flags, _, _ in found)

        with self._talking:
            link.exchange(base64.b64decode(data), 1, True, answered, 40)
            _answer_pings(link, others)
        if not found:
            raise RuntimeError(f"no answer on stream {sid}: {link.end}")
        return [(kind, flags, _text(payload)) for kind, flags, _, payload in found]

    def insist(self, number: int, data: str, repeat: int, read: bool, timeout_s: float = 60) -> dict[str, Any]:
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
        """Come back with the next attack as soon as one is over: how they ended and their codes, by how many; longest life,
        of which no CPU stood still."""
        until, first = time.monotonic() + seconds, base64.b64decode(opening)
        queue = itertools.cycle([base64.b64decode(one) for one in attacks])
        ends: list[str] = []
        codes: list[str] = []
        lives: list[Span] = []
        over = threading.Event()
        pulse = Pulse(over)

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
            lives.append((began, time.monotonic()))

        def storm() -> None:
            while time.monotonic() < until:
                try:
                    assault(next(queue))
                except OSError as error:
                    ends.append(type(error).__name__)

        threads = [threading.Thread(target=storm) for _ in range(at_once)]
        for thread in pulse.threads + threads:
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        longest_s = max((length_s(one, pulse.pauses) for one in lives), default=0.0)
        return {"ends": dict(Counter(ends)), "codes": dict(Counter(codes)), "longest_s": longest_s}

    def undermine(self, host: str, port: int, papers: Papers, opening: str, manner: str, seconds: float) -> dict[str, Any]:
        """Beneath HTTP/2: `keys`, KeyUpdates that want an answer; `records`, DATA with a record for each of its bytes;
        `greetings`, one handshake after the other; `tunnels`, 60 at once, each with small DATA as fast as it is taken."""
        until = time.monotonic() + seconds
        ends: list[str] = []
        first = base64.b64decode(opening)

        def assault(all_of_them: contextlib.ExitStack) -> None:
            links = _tunnels(all_of_them, (host, port), papers, first, 60 if manner == "tunnels" else 1)
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

    def storm(
        self, host: str, port: int, papers: Papers, opening: str, manner: str, blocks: list[str], seconds: float
    ) -> dict[str, Any]:
        """Streams, 100 at a time on one tunnel after the other, each begun by the next block. `answered`: with a byte behind
        it, and reset as soon as all are answered; `halves`: half-closed by their request, and heard to their end. `fill`: 60
        tunnels at once, each with as much for each of its streams as is taken."""
        until, first = time.monotonic() + seconds, base64.b64decode(opening)
        words = itertools.cycle([base64.b64decode(one) for one in blocks])
        ends: list[str] = []
        while time.monotonic() < until:
            try:
                with contextlib.ExitStack() as all_of_them:
                    links = _tunnels(all_of_them, (host, port), papers, first, 60 if manner == "fill" else 1)
                    if manner == "fill":
                        _fill(links, words, until)
                    else:
                        _come_and_go(links[0], manner == "answered", words, until)
                    ends.extend([link.end or "end" for link in links])
            except OSError as error:
                ends.append(type(error).__name__)
        return {"ends": dict(Counter(ends)), "codes": {}}

    def flood(self, host: str, port: int, manner: str, words: list[str], seconds: float, at_once: int = 2) -> dict[str, Any]:
        """Without TLS: `datagrams`; `streams` of words whose answers are read; `asks`, each on a connection of its own;
        `drips`, a hundred that ask a byte at a time; `closes`, connections that are reset as soon as they are there; `says`,
        those that say something first; `bursts` of 400 that come at once and go. How many, and what failed."""
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

    def _drips(self, host: str, port: int, word: bytes, until: float) -> None:
        with contextlib.ExitStack() as all_of_them:
            crowd = [all_of_them.enter_context(socket.create_connection((host, port), 10)) for _ in range(100)]
            for place in range(len(word)):
                for sock in crowd:
                    with contextlib.suppress(OSError):
                        sock.send(word[place : place + 1])
                time.sleep(max(0.0, min(0.1, until - time.monotonic())))

    def _says(self, host: str, port: int, word: bytes, until: float) -> None:
        with socket.create_connection((host, port), 10) as sock:
            sock.sendall(word)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

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

    def visit(self, number: int, papers: Papers | None, answer: str, timeout_s: float = 60) -> dict[str, Any]:
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

    def noticed(self, number: int) -> dict[str, int]:
        """How many streams a witness has had by now, and how many failures."""
        return self._witnesses[number].counts()

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


def _answer_pings(link: Link, frames: list[Frame]) -> None:
    """Answer those that were heard. Other frames are for nobody."""
    answers = b"".join(pong(payload) for kind, flags, _, payload in frames if kind == PING and not flags & 1)
    if answers:
        before = link.sent
        link.exchange(answers, 1, True, lambda: link.sent > before and not link.sending, 60)


def _frame_head(length: int) -> bytes:
    """Of DATA on the first stream."""
    return length.to_bytes(3, "big") + b"\0\0\0\0\0\1"


def _tunnels(
    all_of_them: contextlib.ExitStack, place: tuple[str, int], papers: Papers, opening: bytes, count: int
) -> list[Link]:
    """So many, each with its first words said and answered."""
    links = []
    for _ in range(count):
        link = Link(all_of_them.enter_context(socket.create_connection(place, 10)), papers)
        link.exchange(opening, 1, True, lambda link=link: bool(link.sent and link.said), 10)  # type: ignore[misc]
        links.append(link)
    return links


def _request(block: bytes, sid: int, half: bool = False) -> bytes:
    return len(block).to_bytes(3, "big") + bytes((_HEADERS, 5 if half else 4)) + sid.to_bytes(4, "big") + block


def _come_and_go(link: Link, reset: bool, blocks: Iterator[bytes], until: float) -> None:
    """Streams by the hundred, until the time is over, the tunnel is lost, or the server wants it to be left."""
    farewell = b""
    told = []
    for first in itertools.count(1, 200):
        if link.end or told or time.monotonic() >= until:
            return
        sids = range(first, first + 200, 2)
        behind = b"\0\0\1\0\0%bx" if reset else b"%.0b"
        begun = [_request(next(blocks), sid, not reset) + behind % sid.to_bytes(4, "big") for sid in sids]
        waiting = set(sids)

        def over(waiting: set[int] = waiting) -> bool:
            for kind, flags, sid, _ in link.frames():
                if kind == _RST_STREAM or flags & 1 or (reset and kind == _HEADERS):
                    waiting.discard(sid)
                elif kind == _GOAWAY:
                    told.append(kind)
            return not waiting

        link.exchange(farewell + b"".join(begun), 1, True, over, 10)
        if reset:
            farewell = b"".join(b"\0\0\4\3\0%b\0\0\0\x08" % sid.to_bytes(4, "big") for sid in sids)


def _fill(links: list[Link], blocks: Iterator[bytes], until: float) -> None:
    """A MiB on each of 15 streams: within a stream's window, and a connection's."""
    for sid in range(1, 31, 2):
        words = _request(next(blocks), sid) + (b"\0\x40\0\0\0" + sid.to_bytes(4, "big") + bytes(1 << 14)) * 64
        for link in links:
            if time.monotonic() < until:
                _say(link, words)
    time.sleep(max(0.0, until - time.monotonic()))


def _say(link: Link, words: bytes) -> None:
    all_of_it = link.sent + len(words)  # and what TLS adds
    link.exchange(words, 1, True, lambda: link.sent > all_of_it and not link.sending, 10)


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
