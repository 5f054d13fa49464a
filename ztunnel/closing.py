"""How a socket's close is heard at its other end: as the end of all bytes, or as a reset.

An application's sockets are reset unless the connection ended in order: else the kernel would end those of a worker that
was killed with a FIN, and half an answer would look like a whole one. Tunnels need no such care: TLS and HTTP/2 say their end.
"""

import ctypes
from fcntl import ioctl
from socket import socket
from struct import unpack
from termios import TIOCOUTQ

_SOL_SOCKET, _SO_LINGER = 1, 13
_RESET, _END = b"\1\0\0\0\0\0\0\0", bytes(8)
"""struct linger: on, 0 seconds; off."""
_setsockopt = ctypes.CDLL(None).setsockopt


def reset_on_close(sock: socket) -> None:
    """Make the socket's close a reset, and that of every socket that it accepts. Raises: OSError."""
    _set_linger(sock, _RESET)


def end_on_close(sock: socket) -> None:
    """Make the socket's close an orderly end: all bytes, then FIN. Raises: OSError."""
    _set_linger(sock, _END)


def _set_linger(sock: socket, value: bytes) -> None:
    # Python's own call tries its value as a number first, and writes two error messages: 3x as long, three times a connection.
    if _setsockopt(sock.fileno(), _SOL_SOCKET, _SO_LINGER, value, len(value)):
        sock.setsockopt(_SOL_SOCKET, _SO_LINGER, value)  # which says why not


def undelivered_bytes(sock: socket) -> int:
    """What was sent and has not arrived at the other end: lost where the socket is closed while something in it is unread."""
    found: int = unpack("=i", ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]  # Linux calls it SIOCOUTQ
    return found
