"""redirect.h and layout.py say the same, number by number and offset by offset."""

import ctypes as ct
import platform
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import layout
from bpf.headers import find_headers

HEADER = (Path(layout.__file__).parent / "redirect.h").read_text()
TWINS = {
    "address": layout.AddressBytes,
    "endpoint": layout.Endpoint,
    "settings": layout.Settings,
    "pod": layout.Pod,
    "excluded_port": layout.ExcludedPort,
    "excluded_range": layout.ExcludedRange,
    "usage": layout.Usage,
    "listener_key": layout.ListenerKey,
    "local_key": layout.LocalKey,
    "origin": layout.Origin,
    "flow": layout.FlowKey,
    "tag": layout.Tag,
    "event": layout.EventRecord,
    "budget": layout.Budget,
}


def numbers(pattern: str) -> dict[str, int]:
    return {name: int(number, 0) for name, number in re.findall(pattern, HEADER, re.MULTILINE)}


@pytest.mark.unit
def test_numbers() -> None:
    defined = numbers(r"^#define (\w+) (0x[0-9a-f]+|\d+)")
    roles = {name.removeprefix("ROLE_"): defined.pop(name) for name in list(defined) if name.startswith("ROLE_")}
    assert roles == {role.name: role.value for role in layout.Role}
    assert [defined.pop("POD_CAPTURE"), defined.pop("POD_DNS")] == list(layout.PodFlag)
    programs_only = {name for name in defined if name.startswith("TRACE_")}
    assert {name: getattr(layout, name) for name in defined.keys() - programs_only} == {
        name: number for name, number in defined.items() if name not in programs_only
    }


@pytest.mark.unit
def test_reasons() -> None:
    declared = numbers(r"^\s+(REASONS?(?:_\w+)?) = (\d+)")
    assert declared.pop("REASONS") == len(layout.Reason)
    assert declared.pop("REASON_EVENTS") == layout.Reason.CAPTURED
    assert {name.removeprefix("REASON_"): number for name, number in declared.items()} == {
        reason.name: reason.value for reason in layout.Reason
    }


@pytest.mark.unit
def test_every_struct_has_a_twin() -> None:
    assert set(re.findall(r"^struct (\w+) {", HEADER, re.MULTILINE)) == set(TWINS)


def offsets(structure: type[ct.Structure], path: str = "", base: int = 0) -> Iterator[tuple[str, int, int]]:
    """Every field with its place, through nested structures."""
    for field in structure._fields_:
        name, kind = field[0], field[1]
        place = base + getattr(structure, name).offset
        if isinstance(kind, type) and issubclass(kind, ct.Structure):
            yield from offsets(kind, f"{path}{name}.", place)
        else:
            yield f"{path}{name}", place, ct.sizeof(kind)


@pytest.mark.kernel
def test_the_compiler_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """bcc hands out the C structs as ctypes, from the compiler's own syntax tree."""
    from bcc import BPF

    headers = find_headers()
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(headers.source))
    tables = "".join(f'BPF_TABLE("hash", u32, struct {name}, t_{name}, 1);\n' for name in TWINS)
    text = f"#include <uapi/linux/bpf.h>\n{HEADER}\n{tables}"
    probe = BPF(text=text.encode(), cflags=headers.flags(platform.machine()))
    try:
        for name, twin in TWINS.items():
            compiled = probe[f"t_{name}".encode()].Leaf
            assert ct.sizeof(compiled) == ct.sizeof(twin), name
            assert list(offsets(compiled)) == list(offsets(twin)), name
    finally:
        probe.cleanup()


@pytest.mark.unit
@given(st.ip_addresses())
def test_addresses_survive(address: IPv4Address | IPv6Address) -> None:
    packed = layout.pack_address(address)
    assert len(packed) == 16
    expected = None if packed == bytes(16) else getattr(address, "ipv4_mapped", None) or address
    assert layout.unpack_address(packed) == expected


@pytest.mark.unit
def test_ipv4_is_kept_as_mapped() -> None:
    assert layout.pack_address(ip_address("10.0.0.1")) == bytes(10) + b"\xff\xff\x0a\0\0\1"
