"""The addresses of a pod, as its own namespace has them, and the news when they change.

A netlink socket made inside the namespace reports changes; what changed is not taken from the report but asked for again,
so that a lost report loses nothing.
"""

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from mesh.workload import Address
from wire.netns import entered

_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SCOPE_GLOBAL = 0
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_TIMEOUT_S = 2.0


class AddressWatch:
    """Watches the addresses of one namespace. `fileno()` becomes readable when they may have changed."""

    def __init__(self, netns_fd: int, home_fd: int) -> None:
        with entered(netns_fd, home_fd):
            self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            self._asks = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._news.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self._news.setblocking(False)
        self._asks.bind((0, 0))
        self._asks.settimeout(_ANSWER_TIMEOUT_S)
        self._question = 0

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._news.fileno()

    def read(self) -> tuple[Address, ...]:
        """Take the news in and ask: global addresses, IPv4 first, sorted. OSError when the kernel does not answer in full."""
        self._drain()
        self._question += 1
        self._asks.send(
            _HEADER.pack(_HEADER.size + _IFADDRMSG.size, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, self._question, 0)
            + _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        )
        found: set[Address] = set()
        while True:
            addresses, done = parse_addresses(self._asks.recv(1 << 16), self._question)
            found.update(addresses)
            if done:
                return tuple(sorted(found, key=lambda address: (address.version, int(address))))

    def _drain(self) -> None:
        while True:
            try:
                self._news.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # reports were lost: the question that follows makes up for them
                    raise

    def close(self) -> None:
        """Let go of the namespace."""
        self._news.close()
        self._asks.close()


def parse_addresses(packet: bytes, question: int) -> tuple[list[Address], bool]:
    """The global addresses in one packet of an answer to RTM_GETADDR, and whether it is the last.

    `question`: its number; what is left of the answer to an earlier one, which was not waited for, is passed over.
    Raises: OSError with the kernel's own error; ValueError for a packet that is cut off.
    """
    found: list[Address] = []
    offset = 0
    while offset + _HEADER.size <= len(packet):
        length, kind, _, answers, _ = _HEADER.unpack_from(packet, offset)
        if length < _HEADER.size or offset + length > len(packet):
            raise ValueError("netlink message is cut off")
        body = packet[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3
        if answers != question:
            continue
        if kind in (_NLMSG_DONE, _NLMSG_ERROR):  # an answer that breaks off says why where it ends
            code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else errno.EPROTO
            if code > 0 or kind == _NLMSG_ERROR:
                raise OSError(code, "the kernel does not tell the addresses")
            return found, True
        if kind == _RTM_NEWADDR and (address := _parse_one(body)) is not None:
            found.append(address)
    return found, False


def _parse_one(body: bytes) -> Address | None:
    if len(body) < _IFADDRMSG.size:
        raise ValueError("netlink message is cut off")
    scope = _IFADDRMSG.unpack_from(body)[3]
    values: dict[int, bytes] = {}
    offset = _IFADDRMSG.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size or offset + length > len(body):
            raise ValueError("netlink attribute is cut off")
        values[kind] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is ours.
    raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
    if scope != _SCOPE_GLOBAL or len(raw) not in (4, 16):
        return None
    address: IPv4Address | IPv6Address = ip_address(raw)
    return None if address.is_loopback or address.is_link_local else address
