"""Lists the TCP connections of a network namespace and closes chosen ones (sock_diag, SOCK_DESTROY).

Both ends' programs see ECONNABORTED on a destroyed socket; its peer sees a reset.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from bpf.netlink import Netlink
from mesh.workload import Address
from wire.netns import entered

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21
_NO_BODY = struct.Struct("=BBBBI")  # family, protocol, extensions, pad, states
_ID = struct.Struct("=2s2s16s16sI8s")  # ports (network order), addresses, interface, cookie
_ANSWER_HEAD = struct.Struct("=BBBB")  # family, state, timer, retransmissions
_INODE_AT = _ANSWER_HEAD.size + _ID.size + 16  # after expiry, receive queue, send queue, uid
_ATTRIBUTES_AT = _INODE_AT + 4
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_MARK = 15
_NO_COOKIE = b"\xff" * 8


class State(IntEnum):
    """States of a TCP socket (the kernel's numbers)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


# What carries data or may yet: a connection in TIME_WAIT is over.
LIVE = frozenset({State.ESTABLISHED, State.SYN_SENT, State.SYN_RECV, State.FIN_WAIT1, State.FIN_WAIT2, State.CLOSE_WAIT})


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP socket of a namespace; IPv4 on an IPv6 socket is shown as IPv4."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int
    state: State
    inode: int
    """As in /proc/<pid>/fd; 0 when no process holds it any more."""
    family: int
    """AF_INET or AF_INET6, of the socket."""
    cookie: int
    """The kernel's never-reused number of the socket."""
    interface: int = 0
    mark: int = 0
    """SO_MARK, which takes CAP_NET_ADMIN to set and to see."""


def connections(netns_fd: int, home_fd: int, states: Iterable[State] = LIVE) -> list[Connection]:
    """The TCP sockets of a namespace in one of `states`.

    Raises: OSError when the kernel has no sock_diag.
    """
    mask = sum(1 << state for state in states)
    with entered(netns_fd, home_fd):
        netlink = Netlink(_SOCK_DIAG)
    with netlink:
        return [found for family in (socket.AF_INET, socket.AF_INET6) for found in _dump(netlink, family, mask)]


def destroy(netns_fd: int, home_fd: int, chosen: Iterable[Connection]) -> int:
    """Close connections. Returns: how many were still there to be closed.

    Raises: OSError with EOPNOTSUPP when the kernel lacks CONFIG_INET_DIAG_DESTROY.
    """
    with entered(netns_fd, home_fd):
        netlink = Netlink(_SOCK_DIAG)
    closed = 0
    with netlink:
        for connection in chosen:
            error = netlink.request(_DESTROY, _request(connection.family, 0, connection))
            if error not in (0, errno.ENOENT):
                raise OSError(error, f"closing {connection.local} -> {connection.remote}: {os.strerror(error)}")
            closed += error == 0
    return closed


def _dump(netlink: Netlink, family: int, mask: int) -> Iterator[Connection]:
    for answer in netlink.dump(_BY_FAMILY, _request(family, mask, None)):
        found_family, state, _, _ = _ANSWER_HEAD.unpack_from(answer)
        local_port, remote_port, local, remote, interface, cookie = _ID.unpack_from(answer, _ANSWER_HEAD.size)
        yield Connection(
            local=_address(found_family, local),
            local_port=int.from_bytes(local_port, "big"),
            remote=_address(found_family, remote),
            remote_port=int.from_bytes(remote_port, "big"),
            state=State(state),
            inode=struct.unpack_from("=I", answer, _INODE_AT)[0],
            family=found_family,
            cookie=int.from_bytes(cookie, "little"),
            interface=interface,
            mark=_mark(answer),
        )


def _mark(answer: bytes) -> int:
    at = _ATTRIBUTES_AT
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _MARK:
            return int.from_bytes(answer[at + _ATTRIBUTE.size : at + length], "little")
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
    return 0


def _request(family: int, mask: int, one: Connection | None) -> bytes:
    head = _NO_BODY.pack(family, socket.IPPROTO_TCP, 0, 0, mask)
    if one is None:
        return head + _ID.pack(b"", b"", b"", b"", 0, _NO_COOKIE)
    return head + _ID.pack(
        one.local_port.to_bytes(2, "big"),
        one.remote_port.to_bytes(2, "big"),
        _raw(family, one.local),
        _raw(family, one.remote),
        one.interface,
        one.cookie.to_bytes(8, "little"),
    )


def _raw(family: int, address: Address) -> bytes:
    if family == socket.AF_INET6 and address.version == 4:
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def _address(family: int, raw: bytes) -> Address:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(raw[:4])
    address = ipaddress.IPv6Address(raw)
    return address.ipv4_mapped or address
