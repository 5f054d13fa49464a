"""How a socket's close is heard at its other end: as the end of all bytes, or as a reset.

An application's sockets are reset unless the connection ended in order: else the kernel would end those of a worker that
was killed with a FIN, and half an answer would look like a whole one. Tunnels need no such care: TLS and HTTP/2 say their end.
"""

from socket import socket

_SOL_SOCKET, _SO_LINGER = 1, 13  # without enumerations: of each connection


def reset_on_close(sock: socket) -> None:
    """Make the socket's close a reset, and that of every socket that it accepts."""
    sock.setsockopt(_SOL_SOCKET, _SO_LINGER, b"\1\0\0\0\0\0\0\0")  # on, 0 seconds


def end_on_close(sock: socket) -> None:
    """Make the socket's close an orderly end: all bytes, then FIN."""
    sock.setsockopt(_SOL_SOCKET, _SO_LINGER, b"\0\0\0\0\0\0\0\0")
