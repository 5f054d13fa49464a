"""The settings that the redirect needs inside a pod's network namespace, and how they are taken back.

The proxy speaks to the app from the client's address. Such packets, and the app's answers, are kept inside the namespace by
one rule and one route per family: mark 0x111 goes to table 100, which says that every address is local. The sysctls make
the mark stick: accepted sockets take it over (tcp_fwmark_accept), and so do answers that no socket sends, such as the reset
of a closed port (fwmark_reflect). Every captured connection takes a local port towards one and the same destination, and
would keep it for a minute after its end: tcp_tw_reuse gives it back after a second. What waits in the queue of a proxy's
listener when it closes moves to that of the proxy beside it (tcp_migrate_req, Linux 5.14).
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from bpf.layout import MARK_DELIVER, MARK_MASK
from bpf.netlink import CREATE, EXCL, Netlink
from wire.netns import entered, port_bounds

PRIORITY = 32764
TABLE = 100

_ROUTE = 0  # NETLINK_ROUTE
_NEW_ROUTE, _DEL_ROUTE, _NEW_RULE, _DEL_RULE = 24, 25, 32, 33
_RT_SCOPE_HOST, _RTN_LOCAL, _RTPROT_STATIC, _FR_ACT_TO_TABLE = 254, 2, 4, 1
_RTA_OIF, _RTA_TABLE = 4, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_SYSCTLS = Path("/proc/sys/net")
_WANTED = {
    "ipv4/tcp_fwmark_accept": "1",
    "ipv4/fwmark_reflect": "1",
    "ipv6/fwmark_reflect": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/lo/rp_filter": "0",
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/tcp_migrate_req": "1",
}


@dataclass(frozen=True, slots=True)
class Before:
    """What a namespace had before `prepare`; the agent keeps it for `restore`, also across its own restart."""

    sysctls: dict[str, str]


def prepare(netns_fd: int, home_fd: int) -> Before:
    """Make the settings in the namespace of `netns_fd`. Idempotent: the second call reports the settings it finds.

    Raises: OSError naming the setting that could not be made.
    """
    with entered(netns_fd, home_fd):
        before = {name: text for name in _WANTED if (text := _read(name)) is not None}
        for name in before:
            _write(name, _WANTED[name])
        netlink = Netlink(_ROUTE)
        loopback = socket.if_nametoindex("lo")
        families = _families()
    with netlink:
        for family in families:
            _ask(netlink, _NEW_ROUTE, _route(family, loopback), CREATE | EXCL, errno.EEXIST)
            _ask(netlink, _NEW_RULE, _rule(family), CREATE | EXCL, errno.EEXIST)
    return Before(before)


def restore(netns_fd: int, home_fd: int, before: Before) -> None:
    """Take the settings back. Idempotent."""
    with entered(netns_fd, home_fd):
        netlink = Netlink(_ROUTE)
        loopback = socket.if_nametoindex("lo")
        for name, text in before.sysctls.items():
            if name in _WANTED:
                _write(name, text)
        families = _families(disabled=True)
    with netlink:
        for family in families:
            _ask(netlink, _DEL_RULE, _rule(family), 0, errno.ENOENT)
            _ask(netlink, _DEL_ROUTE, _route(family, loopback), 0, errno.ESRCH)


def local_ports(netns_fd: int, home_fd: int) -> int:
    """How many local ports a pod has for connections it dials: the bound on its captured connections, in each family."""
    with entered(netns_fd, home_fd):
        first, last = port_bounds(_read("ipv4/ip_local_port_range") or "")
    return last - first + 1


def _families(disabled: bool = False) -> tuple[socket.AddressFamily, ...]:
    """Those that the namespace has: without IPv6 in the kernel, or on its loopback, there is nothing to route.

    `disabled`: also one that it gave up: its rules outlive that.
    """
    switch = _read("ipv6/conf/lo/disable_ipv6")
    return _FAMILIES if switch == "0" or (disabled and switch is not None) else _FAMILIES[:1]


def _read(name: str) -> str | None:
    try:
        return (_SYSCTLS / name).read_text().strip()
    except FileNotFoundError:
        return None


def _write(name: str, text: str) -> None:
    try:
        (_SYSCTLS / name).write_text(text)
    except OSError as error:
        raise OSError(error.errno, f"sysctl net/{name}={text} in the pod: {error.strerror}") from error


def _ask(netlink: Netlink, kind: int, body: bytes, flags: int, settled: int) -> None:
    error = netlink.request(kind, body, flags)
    if error not in (0, settled):
        what = "rule" if kind in (_NEW_RULE, _DEL_RULE) else f"table {TABLE}"
        raise OSError(error, f"the pod's routing {what} for mark {MARK_DELIVER:#x}: {os.strerror(error)}")


def _route(family: int, loopback: int) -> bytes:
    """`local default dev lo table 100`."""
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, TABLE, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    return head + _attribute(_RTA_TABLE, TABLE) + _attribute(_RTA_OIF, loopback)


def _rule(family: int) -> bytes:
    """`fwmark 0x111/0xfff pref 32764 lookup 100`."""
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, TABLE, 0, 0, _FR_ACT_TO_TABLE, 0)
    marks = _attribute(_FRA_FWMARK, MARK_DELIVER) + _attribute(_FRA_FWMASK, MARK_MASK)
    return head + _attribute(_FRA_PRIORITY, PRIORITY) + marks + _attribute(_FRA_TABLE, TABLE)


def _attribute(kind: int, number: int) -> bytes:
    return struct.pack("=HHI", 8, kind, number)
