"""The sockets of a pod, made inside its network namespace and kept here, so that every worker shares them.

Three listen for connections (none where an operator turned that off), the others are its DNS.
They outlive any worker: one that dies loses no listener, and its successor gets the same ones. `listen` is called once per
socket, because that is the moment in which the kernel side of the redirect learns of them.
"""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from wire.netns import entered
from ztunnel.channel import HBONE, INBOUND, OUTBOUND, PORTS, SOCKS
from ztunnel.closing import reset_on_close
from ztunnel.dns_sockets import open_dns_sockets

_BACKLOG = 1024
_IPV6_TRANSPARENT = 75  # linux/in6.h; Python has no name for it
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_KINDS = {
    errno.EADDRINUSE: "AddrInUse",
    errno.EADDRNOTAVAIL: "AddrNotAvailable",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.EINVAL: "InvalidInput",
    errno.ENOMEM: "OutOfMemory",
}


class BindError(Exception):
    """A listener could not be made; the text is Istio's ztunnel's."""

    def __init__(self, address: str, error: OSError) -> None:
        number = error.errno or 0
        kind = _KINDS.get(number, "Uncategorized")
        super().__init__(f'Bind({address}, Os {{ code: {number}, kind: {kind}, message: "{os.strerror(number)}" }})')


class Openings(NamedTuple):
    """What is opened in every pod's namespace."""

    mark: int
    dns_places: Sequence[tuple[str, int]] = ()
    ipv6: bool = True
    ports: tuple[int, ...] = PORTS
    shared: bool = True
    """A successor may bind beside its predecessor that drains, so that an upgrade refuses nobody."""


@dataclass(frozen=True, slots=True)
class PodSockets:
    """A pod's namespace and listeners, as descriptors that this object owns."""

    netns_fd: int
    listeners: list[socket.socket]
    """In the order of Openings.ports; for the proxy's own pod only on 15008."""
    dns: list[socket.socket] = field(default_factory=list)
    dns_trouble: str = ""
    """Why its DNS is not served, or not on all addresses."""

    def fds(self) -> list[int]:
        """In the order of the channel's AddPod."""
        return [self.netns_fd, *(sock.fileno() for sock in (*self.listeners, *self.dns))]

    def stop_listening(self) -> None:
        """Close the listeners; connections that a worker accepted go on."""
        for listener in (*self.listeners, *self.dns):
            listener.close()

    def close(self) -> None:
        """Close all."""
        self.stop_listening()
        with suppress(OSError):
            os.close(self.netns_fd)


def check_privileges(home_fd: int, mark: int) -> None:
    """Try what every pod will need. Raises: OSError naming the mend: a proxy that serves nobody should not seem to run."""
    try:
        with entered(home_fd, home_fd), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except OSError as error:
        reason = f"cannot enter network namespaces or mark sockets: {error}: run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN"
        raise OSError(reason) from error


def open_pod_sockets(netns_fd: int, home_fd: int, openings: Openings) -> PodSockets:
    """Listen inside a namespace, on all its addresses, both families where it (and we) have both.

    The caller keeps `netns_fd`. Raises: BindError, and nothing stays open; OSError when the namespace cannot be entered.
    """
    opened: dict[int, socket.socket] = {}
    try:
        with entered(netns_fd, home_fd):
            for port in reversed(openings.ports):  # before anything is sent out, others can come in
                opened[port] = _listen(port, openings)
            dns, trouble = open_dns_sockets(openings.dns_places, openings.mark, openings.shared)
        return PodSockets(os.dup(netns_fd), [opened[port] for port in openings.ports], dns, trouble)
    except BaseException:
        for listener in opened.values():
            listener.close()
        raise


def open_rest_of_dns(sockets: PodSockets, home_fd: int, openings: Openings) -> tuple[list[socket.socket], str]:
    """Open what a pod's DNS lacks; returns also what is wrong still. Raises: OSError when the namespace cannot be entered."""
    there = {sock.getsockname()[:2] for sock in sockets.dns}
    with entered(sockets.netns_fd, home_fd):
        missing = [place for place in openings.dns_places if place not in there]
        return open_dns_sockets(missing, openings.mark, openings.shared)


def open_own_sockets(home_fd: int, openings: Openings) -> PodSockets:
    """Listen on 15008 in the proxy's own namespace, for who comes to the proxy itself. Raises: BindError."""
    return PodSockets(os.dup(home_fd), [_listen(HBONE, openings)])


def _listen(port: int, openings: Openings) -> socket.socket:
    where = "127.0.0.1" if port == SOCKS else "0.0.0.0"
    try:
        if openings.ipv6 and port != SOCKS:
            return _listen_on(socket.AF_INET6, "::", port, openings)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise BindError(f"[::]:{port}", error) from error
    try:
        return _listen_on(socket.AF_INET, where, port, openings)
    except OSError as error:
        raise BindError(f"{where}:{port}", error) from error


def _listen_on(family: socket.AddressFamily, address: str, port: int, openings: Openings) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, openings.mark)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, openings.shared)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if port in (OUTBOUND, INBOUND):  # applications' connections
            reset_on_close(listener)
        with suppress(OSError):
            listener.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            with suppress(OSError):
                listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
