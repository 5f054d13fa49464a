"""Odd questions about a name of the mesh: how Istio's ztunnel answers them, flag by flag, is how weft's does."""

import socket
import struct
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from mesh.inventory import Inventory
from mesh.local_mesh import read_local_mesh
from tests.peer.standalone import standalone
from tests.peer.test_names import MESH
from ztunnel.dns_query import answer, read_query, refuse
from ztunnel.dns_service import TTL_S
from ztunnel.names import Zone, find

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

NAME = "www.example.com"
QUESTION = dns.message.make_query(NAME, "A").to_wire()[12:]
RD = 0x0100
Answer = tuple[object, ...] | None


def asked(flags: int = RD, counts: tuple[int, int, int, int] = (1, 0, 0, 0), rest: bytes = QUESTION) -> bytes:
    return struct.pack("!6H", 7, flags, *counts) + rest


def with_edns(payload: int, **more: bool) -> bytes:
    return dns.message.make_query(NAME, "A", use_edns=0, payload=payload, id=7, **more).to_wire()


COOKIE = dns.edns.GenericOption(10, b"12345678")
OPCODES = (1, 2, 4, 5, 6, 15)
MESSAGES = {
    "a question": asked(),
    "without a wish for recursion": asked(0),
    "checking disabled": asked(RD | 0x10),
    "authentic": asked(RD | 0x20),
    "a bit that must be 0": asked(RD | 0x40),
    "an authority": asked(RD | 0x400),
    "cut": asked(RD | 0x200),
    "with a code": asked(RD | 3),
    "an answer": asked(RD | 0x8000),
    **{f"opcode {number}": asked(RD | number << 11) for number in OPCODES},
    "shorter than a header": asked()[:4],
    "without the question that it counts": asked(rest=b""),
    "cut short in the name": asked()[:-6],
    "with bytes behind it": asked() + b"xxxx",
    "a name that points at itself": asked(rest=b"\3www\xc0\x0c\0\1\0\1"),
    "with an answer in it": asked(counts=(1, 1, 0, 0), rest=QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4abcd"),
    "upper case": asked(rest=QUESTION.upper().replace(b"\3WWW", b"\3WwW")),
    **{f"EDNS of {size} bytes": with_edns(size) for size in (0, 100, 512, 1232, 65535)},
    "EDNS and DNSSEC": with_edns(1232, want_dnssec=True),
    "EDNS and a cookie": dns.message.make_query(NAME, "A", use_edns=0, payload=1232, options=[COOKIE], id=7).to_wire(),
}


def read(wire: bytes | None) -> Answer:
    """What an answer says, but for its bytes."""
    if wire is None:
        return None
    if wire[2] >> 3 & 15 == 5:  # dnspython wants an update there, as its opcode says
        return (wire,)
    message = dns.message.from_wire(wire)
    records = [str(one) for rrset in message.answer for one in (rrset.name, rrset.ttl, *rrset)]
    edns = (message.edns, message.payload, message.ednsflags, message.options) if message.edns >= 0 else ()
    counts = [len(section) for section in (message.authority, message.additional)]
    return message.id, dns.rcode.to_text(message.rcode()), message.flags, str(message.question), records, edns, counts


def ours(inventory: Inventory, wire: bytes) -> bytes | None:
    query = read_query(wire)
    if query is None or query.refusal:
        return refuse(query, query.refusal) if query else None
    assert query.question is not None
    client = inventory.workload("c//Pod/shop/client")
    assert client is not None
    found = find(inventory, Zone(), client, query.question.name, 4)
    assert found is not None
    return answer(query, query.question.name, found.alias, found.addresses, TTL_S, query.udp_limit)


def test_every_message_is_answered_alike(ztunnel: str, tmp_path: Path) -> None:
    mesh, inventory = read_local_mesh(MESH), Inventory()
    inventory.apply([*mesh.workloads, *mesh.services], [])
    usual, differ = dns.message.make_query(NAME, "A", id=8).to_wire(), {}
    with standalone(ztunnel, MESH, tmp_path) as proxy, proxy.make_socket(socket.SOCK_DGRAM) as pod:
        pod.settimeout(10)
        pod.connect(("127.0.0.1", 15053))
        for case, wire in MESSAGES.items():
            pod.send(wire)
            if ours(inventory, wire) is None:  # who hears the answer to the next one first was not answered
                pod.send(usual)
            theirs: bytes | None = pod.recv(65536)
            if theirs is not None and theirs[1] == 8:
                theirs = None
            mine, wanted = read(ours(inventory, wire)), read(theirs)
            if mine != wanted:
                differ[case] = {"weft": mine, "Istio": wanted}
    assert not differ
