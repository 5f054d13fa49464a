"""The load generator's server: one thread, one epoll loop, the standard library alone. Runs inside pods by its source.

A connection starts with nine bytes, a mode and a number:

- `E` size: echo. Every `size` bytes are answered with as many, for as long as the connection lives.
- `S` 0: sink. Everything is read until the client's half-close, then the count goes back: bytes count where they arrive.
- `D` bytes: source. So many bytes are sent; the client closes when it has them (Envoy's HTTP tunnels lose the end of what a
  server sends when the server closes first).
"""

import argparse
import errno
import resource
import select
import socket
import struct
import time

_HEAD = struct.Struct("!cQ")
_COUNT = struct.Struct("!Q")
_BLOCK = 256 << 10
_ZEROS = memoryview(bytes(_BLOCK))
_SENT = b"d"
"""What `D` becomes when all is sent."""
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


def serve(port: int) -> None:
    """Serve until killed, IPv4 and IPv6; says at which port."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    print(listener.getsockname()[1], flush=True)
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


def main() -> None:
    """Serve at `--port`; 0 is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=9000)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    serve(parser.parse_args().port)


if __name__ == "__main__":
    main()
