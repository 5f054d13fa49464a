"""Requests to the kernel, and its refusals; always inside a namespace of the test's own."""

import errno
import socket
import struct
from typing import Any

import pytest

from bpf.netlink import Netlink

pytestmark = pytest.mark.kernel
ROUTE, GET_LINK, DEL_RULE, TARGET_NAMESPACE = 0, 18, 33, 46


@pytest.fixture
def netlink(world: Any) -> Netlink:
    with world.entered("c"):
        return Netlink(ROUTE)


def test_a_table_is_read_to_its_end(netlink: Netlink) -> None:
    with netlink:
        links = list(netlink.dump(GET_LINK, bytes(16)))
    assert [name in b"".join(links) for name in (b"lo\0", b"eth0\0")] == [True, True]


def test_a_refusal_is_a_number_and_the_socket_goes_on(netlink: Netlink) -> None:
    missing = bytes((socket.AF_INET, 0, 0, 0, 251, 0, 0, 1, 0, 0, 0, 0))
    with netlink:
        assert netlink.request(DEL_RULE, missing) == errno.ENOENT
        assert netlink.request(DEL_RULE, missing[:4]) == errno.EINVAL
        assert list(netlink.dump(GET_LINK, bytes(16)))


def test_a_refused_dump_is_an_error(netlink: Netlink) -> None:
    with netlink, pytest.raises(OSError, match="netlink"):
        list(netlink.dump(9999, bytes(16)))


def test_a_dump_that_breaks_off_is_an_error(netlink: Netlink) -> None:
    """The kernel says so in the message that ends it: what is not in it would be taken for gone."""
    of_no_namespace = bytes(16) + struct.pack("=HHi", 8, TARGET_NAMESPACE, 9999)
    with netlink:
        with pytest.raises(OSError, match="netlink"):
            list(netlink.dump(GET_LINK, of_no_namespace))
        assert list(netlink.dump(GET_LINK, bytes(16)))
