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
from tests.descriptors import open_descriptors
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


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.unit
def test_which_addresses_are_a_pods_own() -> None:
    link, own, peer = (bytes((10, 9, 0, last)) for last in (1, 2, 3))
    six, loopback = ip_address("fd09::2").packed, ip_address("::1").packed
    several = [
        message(20, 7, struct.pack("=BBBBI", 2, 24, 0, 253, 1) + attribute(1, link)),  # of the link's scope
        message(
            20, 7, struct.pack("=BBBBI", 2, 32, 0, 0, 1) + attribute(3, b"eth0\0") + attribute(1, peer) + attribute(2, own)
        ),
        message(20, 7, struct.pack("=BBBBI", 10, 64, 0, 0, 1) + attribute(1, six)),
        message(20, 7, struct.pack("=BBBBI", 10, 128, 0, 0, 1) + attribute(1, loopback)),
        message(20, 7, struct.pack("=BBBBI", 10, 64, 0, 0, 1) + attribute(1, ip_address("fe80::2").packed)),
        message(20, 7, struct.pack("=BBBBI", 2, 24, 0, 0, 1) + attribute(1, own[:3])),
        message(20, 7, struct.pack("=BBBBI", 2, 24, 0, 0, 1)),
        message(16, 7, struct.pack("=BBBBI", 2, 24, 0, 0, 1) + attribute(1, peer)),  # of a link
    ]
    found = [ip_address("10.9.0.2"), ip_address("fd09::2")]
    assert parse_addresses(b"".join(several), 7) == (found, False)
    assert parse_addresses(b"".join(several) + message(3, 7, bytes(4)) + several[1], 7) == (found, True)


@pytest.mark.unit
def test_an_answer_that_cannot_be_read_is_none() -> None:
    head = struct.pack("=BBBBI", 2, 24, 0, 0, 1)
    for body in (head[:7], head + struct.pack("=HH", 3, 1), head + struct.pack("=HH4s", 9, 1, bytes(4))):
        with pytest.raises(ValueError, match="cut off"):
            parse_addresses(message(20, 7, body), 7)
    whole = message(20, 7, head + attribute(1, bytes((10, 9, 0, 2))))
    for packet in (message(20, 7, head)[:-1], whole + whole[:-1], struct.pack("=IHHII", 15, 20, 0, 7, 0)):
        with pytest.raises(ValueError, match="cut off"):
            parse_addresses(packet, 7)
    for kind, body, number in ((2, bytes(4), 0), (2, struct.pack("=i", -1), 1), (2, b"", errno.EPROTO), (3, b"", errno.EPROTO)):
        with pytest.raises(OSError, match="the kernel does not tell the addresses") as broken:
            parse_addresses(message(kind, 7, body), 7)
        assert broken.value.errno == number


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
    home, before = open_home(), open_descriptors()
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
        assert open_descriptors() <= before
        os.close(home)
