"""The load generator's client: measures TCP through whatever lies between it and `load_server.py`.

Runs inside pods by its source, with the standard library alone. One thread and one loop, so that it adds no threads or
wake-ups of its own. It reads one JSON order per line on stdin and prints one JSON result per line: it lives through a whole
run, so that start-up costs no measurement anything. Times are CLOCK_MONOTONIC, which every process shares. Loads are closed
loops, but `paced` and `probe`: those begin each request when it is due, whatever became of the others, and count from then.
"""

import json
import resource
import select
import socket
import struct
import sys
import time
from collections import deque
from ipaddress import ip_network
from typing import Any

_HEAD = struct.Struct("!cQ")
_COUNT = struct.Struct("!Q")
_BLOCK = 256 << 10
_ZEROS = memoryview(bytes(_BLOCK))
_WARM_S = 0.3
_ANSWER_S = 30.0
"""A connection that says nothing for so long is an error: nothing here may hang a run."""
_FLOOD_WARM_BYTES = 16 << 20
_PROBE_PATIENCE_S = 5.0
_PROBE_IN_FLIGHT = 64
_SIZE = 64


def _connect(order: dict[str, Any], mode: bytes, number: int, payload: bytes = b"", source: str = "") -> socket.socket:
    address = (order["host"], order["port"])
    sock = socket.create_connection(address, timeout=_ANSWER_S, source_address=(source, 0) if source else None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(_HEAD.pack(mode, number) + payload)
    return sock


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError(f"closed after {len(data)} of {size} bytes")
        data += piece
    return data


def _ready(poll: select.epoll) -> list[tuple[int, int]]:
    ready = poll.poll(_ANSWER_S)
    if not ready:
        raise TimeoutError(f"no answer within {_ANSWER_S:g} s")
    return ready


def _started() -> None:
    print(json.dumps({"started_s": time.monotonic()}), flush=True)


def percentile(values: list[int], share: float) -> float:
    """A percentile of a sorted list, nearest rank."""
    return float(values[min(len(values) - 1, int(len(values) * share))])


def _summary(latencies_ns: list[int], seconds: float, cpu_s: float) -> dict[str, float]:
    latencies_ns.sort()
    return {
        "count": len(latencies_ns),
        "seconds": seconds,
        "per_s": len(latencies_ns) / seconds,
        "p50_us": percentile(latencies_ns, 0.5) / 1000,
        "p99_us": percentile(latencies_ns, 0.99) / 1000,
        "max_us": latencies_ns[-1] / 1000,
        "client_cpu_s": cpu_s,
    }


def round_trips(order: dict[str, Any]) -> dict[str, float]:
    """`connections` connections, one request of `size` bytes in flight on each, for `seconds` after warming up.

    Says `started_s` when it is warm, so that what opening the connections cost is not charged to requests; `total` counts what
    came before, too.
    """
    size = order.get("size", _SIZE)
    message = bytes(size)
    socks = {sock.fileno(): sock for sock in (_connect(order, b"E", size) for _ in range(order["connections"]))}
    poll = select.epoll()
    sent_at: dict[int, int] = {}
    got = dict.fromkeys(socks, 0)
    latencies: list[int] = []
    total = 0
    clock, buffer = time.perf_counter_ns, bytearray(size)
    for descriptor, sock in socks.items():
        poll.register(descriptor, select.EPOLLIN)
        sent_at[descriptor] = clock()
        sock.sendall(message)
    start = clock() + int(_WARM_S * 1e9)
    stop = start + int(order["seconds"] * 1e9)
    cpu, now = 0.0, clock()
    while now < stop:
        for descriptor, _ in _ready(poll):
            count = socks[descriptor].recv_into(buffer)
            if not count:
                raise ConnectionError("closed by the server")
            got[descriptor] += count
            if got[descriptor] < size:
                continue
            now, total = clock(), total + 1
            if now >= start:
                if not latencies:
                    _started()
                    cpu, start, stop = time.process_time(), now, now + int(order["seconds"] * 1e9)
                latencies.append(now - sent_at[descriptor])
            got[descriptor] = 0
            sent_at[descriptor] = now
            socks[descriptor].send(message)
    for sock in socks.values():
        sock.close()
    return {**_summary(latencies, (now - start) / 1e9, time.process_time() - cpu), "total": total}


def paced(order: dict[str, Any]) -> dict[str, float]:
    """`rate` requests a second for `seconds`, on `connections` in turn; latency counts from the moment a request was due.

    Nobody waits for an answer: what a slow moment holds up is counted as long as it was held up.
    """
    size, step = order.get("size", _SIZE), int(1e9 / order["rate"])
    message, buffer, clock = bytes(size), bytearray(1 << 16), time.perf_counter_ns
    socks = [_connect(order, b"E", size) for _ in range(order["connections"])]
    due_at: dict[socket.socket, deque[int]] = {sock: deque() for sock in socks}
    got = dict.fromkeys(socks, 0)
    latencies: list[int] = []
    begin, cpu = clock(), time.process_time()
    first = begin + int(_WARM_S * 1e9)
    total = int(order["rate"] * (_WARM_S + order["seconds"]))
    sent = answered = 0
    while answered < total:
        due = begin + sent * step
        while sent < total and due <= clock():
            sock = socks[sent % len(socks)]
            due_at[sock].append(due)
            sock.sendall(message)
            sent += 1
            due = begin + sent * step
        patience = max(0.0, (due - clock()) / 1e9) if sent < total else _ANSWER_S
        ready, _, _ = select.select(socks, [], [], patience)  # epoll's timeout has whole milliseconds only
        if not ready and sent == total:
            raise TimeoutError(f"no answer within {_ANSWER_S:g} s")
        for sock in ready:
            count = sock.recv_into(buffer)
            if not count:
                raise ConnectionError("closed by the server")
            now, got[sock] = clock(), got[sock] + count
            while got[sock] >= size:
                got[sock] -= size
                answered += 1
                due = due_at[sock].popleft()
                if due >= first:
                    latencies.append(now - due)
    for sock in socks:
        sock.close()
    return _summary(latencies, (clock() - first) / 1e9, time.process_time() - cpu)


_used_sources = 0


def _next_source(network: str) -> str:
    global _used_sources
    _used_sources += 1
    return str(ip_network(network)[_used_sources])


def exchanges(order: dict[str, Any]) -> dict[str, float]:
    """Connect, one request, its answer, close; one after the other for `seconds`.

    With `sources`, a network that is local here, each from another address of it, never one twice in the life of this process.
    """
    latencies: list[int] = []
    clock, cpu = time.perf_counter_ns, time.process_time()
    sources = order.get("sources", "")
    begin = now = clock()
    stop = begin + int(order["seconds"] * 1e9)
    while now < stop:
        source = _next_source(sources) if sources else ""
        now = clock()
        with _connect(order, b"E", _SIZE, bytes(_SIZE), source) as sock:
            _read(sock, _SIZE)
        latencies.append(clock() - now)
        now = clock()
    return _summary(latencies, (now - begin) / 1e9, time.process_time() - cpu)


def upload(order: dict[str, Any]) -> dict[str, float]:
    """Send `bytes` over `connections`, half-close each, and wait for the sinks' counts."""
    many, cpu = order.get("connections", 1), time.process_time()
    begin = time.perf_counter()
    socks = {sock.fileno(): sock for sock in (_connect(order, b"S", 0) for _ in range(many))}
    left = dict.fromkeys(socks, order["bytes"] // many)
    with select.epoll() as poll:
        for descriptor, sock in socks.items():
            sock.setblocking(False)
            poll.register(descriptor, select.EPOLLOUT)
        open_ends = len(socks)
        while open_ends:
            for descriptor, _ in _ready(poll):
                if left[descriptor]:
                    left[descriptor] -= socks[descriptor].send(_ZEROS[: min(left[descriptor], _BLOCK)])
                if not left[descriptor]:
                    socks[descriptor].shutdown(socket.SHUT_WR)
                    poll.unregister(descriptor)
                    open_ends -= 1
    arrived = 0
    for sock in socks.values():
        sock.settimeout(_ANSWER_S)
        arrived += _COUNT.unpack(_read(sock, _COUNT.size))[0]
    seconds = time.perf_counter() - begin
    for sock in socks.values():
        sock.close()
    return _bulk(order["bytes"] // many * many, arrived, seconds, time.process_time() - cpu)


def download(order: dict[str, Any]) -> dict[str, float]:
    """Ask for `bytes` over `connections` and count what arrives."""
    many, cpu, buffer = order.get("connections", 1), time.process_time(), bytearray(_BLOCK)
    begin = time.perf_counter()
    share = order["bytes"] // many
    socks = {sock.fileno(): sock for sock in (_connect(order, b"D", share) for _ in range(many))}
    left = dict.fromkeys(socks, share)
    with select.epoll() as poll:
        for descriptor in socks:
            poll.register(descriptor, select.EPOLLIN)
        while any(left.values()):
            for descriptor, _ in _ready(poll):
                count = socks[descriptor].recv_into(buffer)
                left[descriptor] -= count
                if not left[descriptor]:
                    poll.unregister(descriptor)
                elif not count:
                    raise ConnectionError(f"closed with {left[descriptor]} bytes missing")
    seconds = time.perf_counter() - begin
    for sock in socks.values():
        sock.close()
    return _bulk(share * many, share * many - sum(left.values()), seconds, time.process_time() - cpu)


def _bulk(wanted: int, arrived: int, seconds: float, cpu_s: float) -> dict[str, float]:
    if arrived != wanted:
        raise ConnectionError(f"{arrived} of {wanted} bytes arrived")
    return {"bytes": arrived, "seconds": seconds, "gb_per_s": arrived / seconds / 1e9, "client_cpu_s": cpu_s}


def flood(order: dict[str, Any]) -> dict[str, float]:
    """Send as much as goes for `seconds` on one connection; says `started_s` when it flows."""
    sent, cpu = 0, time.process_time()
    with _connect(order, b"S", 0) as sock:
        while sent < _FLOOD_WARM_BYTES:
            sent += sock.send(_ZEROS)
        _started()
        begin = time.perf_counter()
        while time.perf_counter() - begin < order["seconds"]:
            sent += sock.send(_ZEROS)
        sock.shutdown(socket.SHUT_WR)
        (arrived,) = _COUNT.unpack(_read(sock, _COUNT.size))
    return _bulk(sent, arrived, time.perf_counter() - begin, time.process_time() - cpu)


_held: list[socket.socket] = []


def hold(order: dict[str, Any]) -> dict[str, float]:
    """Open `connections` more connections that have echoed once, and keep them."""
    for _ in range(order["connections"]):
        sock = _connect(order, b"E", _SIZE, bytes(_SIZE))
        _held.append(sock)
        _read(sock, _SIZE)
    return {"held": len(_held)}


def release(order: dict[str, Any]) -> dict[str, float]:
    """Close what `hold` opened."""
    count = len(_held)
    while _held:
        _held.pop().close()
    return {"released": count}


def until(order: dict[str, Any]) -> dict[str, float]:
    """Try one exchange after the other until it is `refused` (or answered); the monotonic time when that was so.

    With `live`, a connection that was open before must go too: `closed_s` is when it did.
    """
    deadline = time.monotonic() + order["seconds"]
    live = _connect(order, b"E", _SIZE) if order.get("live") else None
    _started()
    result: dict[str, float] = {}
    attempts = 0
    while time.monotonic() < deadline:
        attempts += 1
        if "at_s" not in result and _answers(order) != order["refused"]:
            result["at_s"] = time.monotonic()
        if live is not None and _is_closed(live):
            live.close()
            live, result["closed_s"] = None, time.monotonic()
        if "at_s" in result and live is None:
            return result | {"attempts": attempts}
        time.sleep(0.001)
    raise TimeoutError(f"nothing changed within {order['seconds']:g} s")


def _answers(order: dict[str, Any]) -> bool:
    try:
        with _connect(order, b"E", _SIZE, bytes(_SIZE)) as sock:
            _read(sock, _SIZE)
            return True
    except OSError:
        return False


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


class _Probe:
    """One attempt of `probe`."""

    def __init__(self, order: dict[str, Any], poll: select.epoll) -> None:
        self.due = time.monotonic()
        self.sock = socket.socket(socket.AF_INET)
        self.sock.setblocking(False)
        self.said = False
        self.got = 0
        self.sock.connect_ex((order["host"], order["port"]))
        poll.register(self.sock, select.EPOLLOUT)

    def advance(self, poll: select.epoll) -> bool | None:
        """Go on where the kernel lets us: whether it was answered; None: it is under way."""
        try:
            if not self.said:
                self.sock.send(_HEAD.pack(b"E", _SIZE) + bytes(_SIZE))
                self.said = True
                poll.modify(self.sock, select.EPOLLIN)
                return None
            piece = len(self.sock.recv(_SIZE))
        except BlockingIOError:
            return None
        except OSError:
            return False
        self.got += piece
        return False if not piece else True if self.got == _SIZE else None


def probe(order: dict[str, Any]) -> dict[str, float]:
    """Begin a connection with one request every 1/`rate` s for `seconds`; says `started_s` when the first was answered.

    `failed` were refused, reset or not answered in 5 s; `gap_s` is the longest time between two answers. No more than 64
    are under way at a time: where all hang, as many are late, and the gap tells.
    """
    count = {"answered": 0, "failed": 0}
    poll, probes = select.epoll(), dict[int, _Probe]()
    begin = time.monotonic()
    stop, due, last, gap = begin + order["seconds"], begin, 0.0, 0.0
    while (now := time.monotonic()) < stop or probes:
        if due <= now < stop and len(probes) < _PROBE_IN_FLIGHT:
            one = _Probe(order, poll)
            probes[one.sock.fileno()] = one
            due = max(due + 1 / order["rate"], now)
        for descriptor, _ in poll.poll(0.001):
            outcome = probes[descriptor].advance(poll)
            if outcome is not None:
                probes.pop(descriptor).sock.close()
                count["answered" if outcome else "failed"] += 1
                if outcome:
                    now = time.monotonic()
                    if last:
                        gap = max(gap, now - last)
                    else:
                        _started()
                    last = now
        for descriptor in [key for key, one in probes.items() if now - one.due > _PROBE_PATIENCE_S]:
            probes.pop(descriptor).sock.close()
            count["failed"] += 1
    return {**count, "gap_s": gap, "seconds": time.monotonic() - begin}


_ALL = (round_trips, paced, exchanges, upload, download, flood, hold, release, until, probe)
_ORDERS = {order.__name__: order for order in _ALL}


def main() -> None:
    """Carry out orders until stdin ends. A load that fails answers with `error`; the next order is carried out all the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            result: dict[str, Any] = _ORDERS[order["load"]](order)
        except OSError as error:
            result = {"error": f"{type(error).__name__}: {error}", "order": order}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
