"""The load generator: a server and a client that measure TCP through whatever lies between them.

Runs inside pods by its path, with the standard library alone. One thread, one epoll loop at each end, so that neither end
adds threads or wake-ups of its own. A connection starts with nine bytes, a mode and a number:

- `E` size: echo. Every `size` bytes are answered with as many, for as long as the connection lives.
- `S` 0: sink. Everything is read until the client's half-close, then the count goes back: bytes count where they arrive.
- `D` bytes: source. So many bytes are sent; the client closes when it has them (Envoy's HTTP tunnels lose the end of what a
  server sends when the server closes first).

The client reads one JSON order per line on stdin and prints one JSON result per line: it lives through a whole run, so that
start-up costs no measurement anything. All loads are closed loops; times are CLOCK_MONOTONIC, which every process shares.
"""

import argparse
import errno
import json
import resource
import select
import socket
import struct
import sys
import time
from typing import Any

_HEAD = struct.Struct("!cQ")
_COUNT = struct.Struct("!Q")
_BLOCK = 256 << 10
_SENT = b"d"
"""What `D` becomes when all is sent."""
_WARM_S = 0.3
_ANSWER_S = 30.0
"""A connection that says nothing for so long is an error: nothing here may hang a run."""
_LIMIT = 1 << 40


class _Served:
    """One accepted connection at the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.mode = b""
        self.number = 0
        self.count = 0
        self.waiting = memoryview(b"")
        self.events = select.EPOLLIN

    def on_ready(self, buffer: memoryview) -> bool:
        """Work while the kernel lets us; False when the connection is finished."""
        try:
            return self._send_waiting() and (self.mode == b"D" or self._receive(buffer))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _receive(self, buffer: memoryview) -> bool:
        count = self.sock.recv_into(buffer)
        if not self.mode:
            self.head += bytes(buffer[:count])
            if len(self.head) < _HEAD.size:
                return count > 0
            self.mode, self.number = _HEAD.unpack_from(self.head)
            rest, self.head = self.head[_HEAD.size :], b""
            buffer[: len(rest)] = rest
            return self._take(buffer, len(rest), first=True)
        return self._take(buffer, count)

    def _take(self, buffer: memoryview, count: int, first: bool = False) -> bool:
        if self.mode == b"D":
            self.count = min(self.number, _LIMIT)
            return self._send_waiting()
        if self.mode == _SENT:
            return count > 0
        self.count += count
        if self.mode == b"S":
            if count or first:
                return True
            self.sock.send(_COUNT.pack(self.count))
            return False
        whole = self.count - self.count % max(1, self.number)
        self.count -= whole
        if whole:
            self._send(memoryview(bytes(whole)))
        return count > 0 or first

    def _send(self, data: memoryview) -> None:
        sent = 0
        try:
            sent = self.sock.send(data)
        finally:
            self.waiting = data[sent:]

    def _send_waiting(self) -> bool:
        if self.mode == b"D":
            while self.count:
                self.count -= self.sock.send(_ZEROS[: min(self.count, _BLOCK)])
            self.mode = _SENT
            return True
        if self.waiting:
            self._send(self.waiting)
        return True


_ZEROS = memoryview(bytes(_BLOCK))


def serve(port: int) -> None:
    """Serve until killed, IPv4 and IPv6."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    served: dict[int, _Served] = {}
    buffer = memoryview(bytearray(_BLOCK))
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                _accept(listener, poll, served)
                continue
            one = served[descriptor]
            alive = one.on_ready(buffer)
            if not alive:
                del served[descriptor]
                poll.unregister(descriptor)
                one.sock.close()
            else:
                events = select.EPOLLOUT if one.waiting or one.mode == b"D" else select.EPOLLIN
                if events != one.events:
                    poll.modify(descriptor, events)
                    one.events = events


def _accept(listener: socket.socket, poll: select.epoll, served: dict[int, _Served]) -> None:
    try:
        sock, _ = listener.accept()
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
            time.sleep(0.05)  # out of descriptors or memory: others need a moment to close theirs
        return
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    served[sock.fileno()] = _Served(sock)
    poll.register(sock, select.EPOLLIN)


# --- client


def _connect(order: dict[str, Any], mode: bytes, number: int, payload: bytes = b"") -> socket.socket:
    sock = socket.create_connection((order["host"], order["port"]), timeout=_ANSWER_S)
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

    Says `started_s` when it is warm, so that what opening the connections cost is not charged to requests.
    """
    size = order.get("size", 64)
    message = bytes(size)
    socks = {sock.fileno(): sock for sock in (_connect(order, b"E", size) for _ in range(order["connections"]))}
    poll = select.epoll()
    sent_at: dict[int, int] = {}
    got = dict.fromkeys(socks, 0)
    latencies: list[int] = []
    clock, buffer = time.perf_counter_ns, bytearray(size)
    for descriptor, sock in socks.items():
        poll.register(descriptor, select.EPOLLIN)
        sent_at[descriptor] = clock()
        sock.sendall(message)
    start = clock() + int(_WARM_S * 1e9)
    stop = start + int(order["seconds"] * 1e9)
    cpu, now = 0.0, clock()
    while now < stop:
        ready = poll.poll(_ANSWER_S)
        if not ready:
            raise TimeoutError(f"no answer within {_ANSWER_S:g} s")
        for descriptor, _ in ready:
            count = socks[descriptor].recv_into(buffer)
            if not count:
                raise ConnectionError("closed by the server")
            got[descriptor] += count
            if got[descriptor] < size:
                continue
            now = clock()
            if now >= start:
                if not latencies:
                    print(json.dumps({"started_s": time.monotonic()}), flush=True)
                    cpu, start = time.process_time(), now
                latencies.append(now - sent_at[descriptor])
            got[descriptor] = 0
            sent_at[descriptor] = now
            socks[descriptor].send(message)
    for sock in socks.values():
        sock.close()
    return _summary(latencies, (now - start) / 1e9, time.process_time() - cpu)


def exchanges(order: dict[str, Any]) -> dict[str, float]:
    """Connect, one request, its answer, close; one after the other for `seconds`."""
    latencies: list[int] = []
    clock, cpu = time.perf_counter_ns, time.process_time()
    begin = now = clock()
    stop = begin + int(order["seconds"] * 1e9)
    while now < stop:
        with _connect(order, b"E", 64, bytes(64)) as sock:
            _read(sock, 64)
        latencies.append(clock() - now)
        now = clock()
    return _summary(latencies, (now - begin) / 1e9, time.process_time() - cpu)


def upload(order: dict[str, Any]) -> dict[str, float]:
    """Send `bytes`, half-close, and wait for the sink's count."""
    left, cpu = order["bytes"], time.process_time()
    begin = time.perf_counter()
    with _connect(order, b"S", 0) as sock:
        while left:
            left -= sock.send(_ZEROS[: min(left, _BLOCK)])
        sock.shutdown(socket.SHUT_WR)
        (arrived,) = _COUNT.unpack(_read(sock, _COUNT.size))
    return _bulk(order["bytes"], arrived, time.perf_counter() - begin, time.process_time() - cpu)


def download(order: dict[str, Any]) -> dict[str, float]:
    """Ask for `bytes` and count what arrives."""
    arrived, cpu, buffer = 0, time.process_time(), bytearray(_BLOCK)
    begin = time.perf_counter()
    with _connect(order, b"D", order["bytes"]) as sock:
        while arrived < order["bytes"] and (count := sock.recv_into(buffer)):
            arrived += count
    return _bulk(order["bytes"], arrived, time.perf_counter() - begin, time.process_time() - cpu)


def _bulk(wanted: int, arrived: int, seconds: float, cpu_s: float) -> dict[str, float]:
    if arrived != wanted:
        raise ConnectionError(f"{arrived} of {wanted} bytes arrived")
    return {"bytes": arrived, "seconds": seconds, "gb_per_s": arrived / seconds / 1e9, "client_cpu_s": cpu_s}


_held: list[socket.socket] = []


def hold(order: dict[str, Any]) -> dict[str, float]:
    """Open `connections` more connections that have echoed once, and keep them."""
    for _ in range(order["connections"]):
        sock = _connect(order, b"E", 64, bytes(64))
        _held.append(sock)
        _read(sock, 64)
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
    live = _connect(order, b"E", 64) if order.get("live") else None
    print(json.dumps({"started_s": time.monotonic()}), flush=True)
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
        with _connect(order, b"E", 64, bytes(64)) as sock:
            _read(sock, 64)
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


_ORDERS = {order.__name__: order for order in (round_trips, exchanges, upload, download, hold, release, until)}


def client() -> None:
    """Carry out orders until stdin ends. A load that fails answers with `error`; the next order is carried out all the same."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            result: dict[str, Any] = _ORDERS[order["load"]](order)
        except OSError as error:
            result = {"error": f"{type(error).__name__}: {error}", "order": order}
        print(json.dumps(result), flush=True)


def main() -> None:
    """Be the server or the client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["serve", "client"])
    parser.add_argument("--port", type=int, default=9000)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    serve(arguments.port) if arguments.role == "serve" else client()


if __name__ == "__main__":
    main()
