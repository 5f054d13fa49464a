"""The load generator for DNS: questions at a fixed rate, as many of each second as one says, over UDP.

usage: name_load.py SERVER PORT NAME RATE SECONDS

Runs inside pods by its source, with the standard library alone, as `load.py` does. It first asks until the name has an address.
Time counts from the moment a question was due, whatever held it up. What is not answered with an address within 2 s has failed.
"""

import json
import select
import socket
import struct
import sys
import time

_SOCKETS = 8
_PATIENCE_S, _AT_FIRST_S = 2.0, 20.0
_HEAD = struct.Struct("!6H")
_RECURSION_DESIRED, _RCODE = 0x0100, 0x000F


def question(name: str, number: int) -> bytes:
    """Its A record, please."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return _HEAD.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def is_address(answer: bytes) -> bool:
    """Whether it holds one."""
    _, flags, _, count, _, _ = _HEAD.unpack_from(answer)
    return not flags & _RCODE and count > 0


def _sockets(server: tuple[str, int]) -> list[socket.socket]:
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(_SOCKETS)]
    for sock in socks:
        sock.connect(server)
    return socks


def _await_name(sock: socket.socket, name: str) -> None:
    deadline = time.monotonic() + _AT_FIRST_S
    sock.settimeout(0.5)
    while time.monotonic() < deadline:
        sock.send(question(name, 0xFFFF))
        try:
            if is_address(sock.recv(4096)):
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{name} has no address within {_AT_FIRST_S:g} s")


def ask(server: tuple[str, int], name: str, rate: float, seconds: float) -> dict[str, float]:
    """Ask away. Raises: TimeoutError when the name has no address at all."""
    socks = _sockets(server)
    _await_name(socks[0], name)
    for sock in socks:
        sock.setblocking(False)
    due_at: dict[int, int] = {}
    took: list[int] = []
    wrong, clock, begin, total = 0, time.perf_counter_ns, time.perf_counter_ns(), int(rate * seconds)
    sent, step, until = 0, int(1e9 / rate), 0
    while (sent < total or due_at) and not (until and clock() > until):
        while sent < total and (due := begin + sent * step) <= clock():
            due_at[sent] = due
            socks[sent % _SOCKETS].send(question(name, sent))
            sent += 1
            until = due + int(_PATIENCE_S * 1e9) if sent == total else 0
        wait_s = (begin + sent * step - clock()) / 1e9 if sent < total else _PATIENCE_S
        for sock in select.select(socks, [], [], max(wait_s, 0.0))[0]:
            answer = sock.recv(4096)
            due = due_at.pop(_HEAD.unpack_from(answer)[0], 0)  # 0: a second answer, or a late one to who asked at first
            if due and is_address(answer):
                took.append(clock() - due)
            elif due:
                wrong += 1
    took.sort()
    p50_us, p99_us = (took[min(len(took) - 1, int(len(took) * share))] / 1000 if took else 0.0 for share in (0.5, 0.99))
    return {"answered": len(took), "failed": len(due_at) + wrong, "p50_us": p50_us, "p99_us": p99_us}


if __name__ == "__main__":
    host, port, name, rate, seconds = sys.argv[1:]
    print(json.dumps(ask((host, int(port)), name, float(rate), float(seconds))))
