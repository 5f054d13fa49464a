"""A pod's addresses are read from its own namespace, and changes are noticed."""

import errno
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.addresses import AddressWatch, parse_addresses
from wire.netns import open_home

NAME = f"weft-test-addr-{os.getpid()}"


@given(st.binary(max_size=200))
@pytest.mark.unit
def test_any_packet_is_read_or_refused(packet: bytes) -> None:
    try:
        addresses, done = parse_addresses(packet, int.from_bytes(packet[8:12], sys.byteorder))
        assert isinstance(addresses, list) and done in (True, False)
    except (OSError, ValueError) as error:
        assert str(error)


def message(kind: int, question: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, question, 0) + body


@pytest.mark.unit
def test_an_answer_that_breaks_off_is_none_and_what_is_left_of_an_earlier_one_is_not_this_one() -> None:
    """By a part of its addresses a pod would lose the others: they would be reached past the proxy."""
    address = struct.pack("=BBBBI", 2, 24, 0, 0, 1) + struct.pack("=HH4s", 8, 2, bytes((10, 9, 0, 2)))
    told, done = message(20, 7, address), message(3, 7, bytes(4))
    assert parse_addresses(told + done, 7) == ([ip_address("10.9.0.2")], True)
    assert parse_addresses(told + done, 8) == ([], False)
    with pytest.raises(OSError, match="the kernel does not tell the addresses") as broken:
        parse_addresses(told + message(3, 7, struct.pack("=i", -errno.ENOMEM)), 7)
    assert broken.value.errno == errno.ENOMEM


@pytest.fixture
def netns() -> Iterator[int]:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    fd = os.open(f"/run/netns/{NAME}", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
        subprocess.run(["ip", "netns", "del", NAME], check=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", "-n", NAME, *arguments], check=True)


@pytest.mark.kernel
def test_reads_global_addresses_and_notices_changes(netns: int) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    ip("link", "set", "eth0", "up")
    ip("addr", "add", "10.9.0.2/24", "dev", "eth0")
    home = open_home()
    watch = AddressWatch(netns, home)
    try:
        assert watch.read() == (ip_address("10.9.0.2"),)
        assert not select.select([watch], [], [], 0)[0]
        ip("addr", "add", "fd09::2/64", "dev", "eth0", "nodad")
        assert select.select([watch], [], [], 20)[0]
        assert watch.read() == (ip_address("10.9.0.2"), ip_address("fd09::2"))
        ip("addr", "del", "10.9.0.2/24", "dev", "eth0")
        assert select.select([watch], [], [], 20)[0]
        assert watch.read() == (ip_address("fd09::2"),)
    finally:
        watch.close()
        os.close(home)
