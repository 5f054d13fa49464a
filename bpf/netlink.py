"""Netlink requests, answered at once: just what sock_diag and policy routing need.

A socket belongs to the network namespace in which it was made, so the callers make it inside a pod's and use it outside.
"""

import os
import socket
import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
CREATE, EXCL = 0x400, 0x200
_ROOM = 1 << 16
_TIMEOUT_S = 5.0


class Netlink:
    """One netlink socket of the calling thread's network namespace."""

    def __init__(self, protocol: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sock.bind((0, 0))
        self._sock.settimeout(_TIMEOUT_S)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, kind: int, body: bytes, flags: int = 0) -> int:
        """Ask for something to be done. Returns: 0, or the errno with which the kernel refused."""
        self._send(kind, _REQUEST | _ACK | flags, body)
        for answer, payload in self._messages():
            if answer == _ERROR:
                return -int(struct.unpack_from("=i", payload)[0])
        raise OSError("netlink: the kernel's answer lacks an acknowledgement")

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Ask for a table. Yields: the payload of every entry.

        Raises: OSError when the kernel refuses, or breaks off.
        """
        self._send(kind, _REQUEST | _DUMP, body)
        while True:
            for answer, payload in self._messages():
                if answer in (_DONE, _ERROR):  # a dump that breaks off says why where it ends
                    error = -int(struct.unpack_from("=i", payload)[0])
                    if error > 0 or answer == _ERROR:
                        raise OSError(error, f"netlink: {os.strerror(error)}")
                    return
                yield payload

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

    def _messages(self) -> list[tuple[int, bytes]]:
        """One datagram of the current request, taken apart; what is left of an earlier one is passed over."""
        data = self._sock.recv(_ROOM)
        found, at = [], 0
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                break
            if sequence == self._sequence:
                found.append((kind, data[at + _HEADER.size : at + length]))
            at += length + 3 & ~3
        return found
