"""Makes the maps and keeps them on the bpffs; bcc is only told where they are.

So an upgrade keeps every map whose layout did not change, with all that is in it, and a program never meets a map of
another version.
"""

import ctypes as ct
import struct
from collections.abc import Iterable
from pathlib import Path

from bpf import libbpf
from bpf.layout import MAPS, MapSpec, Tag

_BTF_MAGIC = 0xEB9F
_BTF_INT, _BTF_STRUCT = 1 << 24, 4 << 24


def ensure_maps(folder: Path, specs: Iterable[MapSpec] = MAPS) -> list[str]:
    """Pin every map under `folder`; maps of another layout are replaced, others kept.

    Programs that are attached keep the map that they were loaded with, until others take their place.

    Returns: the names of the maps that were made.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    specs = tuple(specs)
    outdated = {spec.name for spec in specs if not _is_there(folder / spec.name, spec)}
    outdated |= {spec.name for spec in specs if outdated.intersection(spec.counts)}
    for spec in specs:
        if spec.name in outdated:
            with _create(spec) as descriptor:
                if spec.written_by_agent and (folder / spec.name).exists():
                    _carry_over(folder / spec.name, libbpf.Map(descriptor))
                libbpf.replace_pin(descriptor.fd, folder / spec.name)
    return [spec.name for spec in specs if spec.name in outdated]


def _is_there(path: Path, spec: MapSpec) -> bool:
    return path.exists() and is_as_specified(path, spec)


def _carry_over(old_path: Path, new: libbpf.Map) -> None:
    """Copy entries between maps that differ in capacity alone; of others the agent writes them anew (agent/upgrade.py)."""
    with libbpf.open_pin(old_path) as descriptor:
        old = libbpf.Map(descriptor)
        if (old.type, old.key_size, old.value_size) == (new.type, new.key_size, new.value_size):
            for key, value in old.items():
                new.put(key, value)


def is_as_specified(path: Path, spec: MapSpec) -> bool:
    """Whether the map pinned at `path` has the layout of `spec`."""
    with libbpf.open_pin(path) as descriptor:
        info = libbpf.map_info(descriptor.fd)
    found = (info.type, (info.key_size, info.value_size), info.max_entries, info.map_flags)
    return found == (spec.type, spec.sizes, spec.capacity, spec.flags)


def _create(spec: MapSpec) -> libbpf.Descriptor:
    if spec.type != libbpf.MapType.SK_STORAGE:
        return libbpf.create_map(spec.type, spec.name, spec.sizes, spec.capacity, spec.flags)
    with libbpf.load_btf(_storage_btf(ct.sizeof(Tag))) as btf:
        return libbpf.create_map(spec.type, spec.name, spec.sizes, spec.capacity, spec.flags, btf.fd)


def _storage_btf(value_size: int) -> bytes:
    """The type information that the kernel demands of socket storage: an int for the key, a struct of the value's size."""
    names = b"\0int\0tag\0"
    key = struct.pack("<IIII", 1, _BTF_INT, 4, 1 << 24 | 32)
    value = struct.pack("<III", 5, _BTF_STRUCT, value_size)
    types = key + value
    header = struct.pack("<HBBIIIII", _BTF_MAGIC, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names
