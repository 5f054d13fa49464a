"""libbpf.so.1 through ctypes: maps, links, pins and the ring buffer, by descriptor and by path.

bcc compiles, but its Python neither creates links nor opens what is pinned. libbpf 1.x returns -errno (or NULL with errno
set); every function here raises OSError instead, whose text names the object. Descriptors are plain ints that the caller
closes, or `Descriptor` objects that close themselves.
"""

import ctypes as ct
import errno
import os
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

_lib = ct.CDLL("libbpf.so.1", use_errno=True)

# A missing map element and a missing pin are answers, not failures.
_MISSING = errno.ENOENT


class MapType(IntEnum):
    """Kinds of map (the kernel's numbers)."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LPM_TRIE = 11
    SOCKHASH = 18
    SK_STORAGE = 24
    RINGBUF = 27


class MapInfo(ct.Structure):
    """The head of the kernel's bpf_map_info, as far as every 6.x kernel fills it."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("key_size", ct.c_uint32),
        ("value_size", ct.c_uint32),
        ("max_entries", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("name", ct.c_char * 16),
    )


class ProgramInfo(ct.Structure):
    """The head of bpf_prog_info, up to the name."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("tag", ct.c_uint8 * 8),
        ("jited_prog_len", ct.c_uint32),
        ("xlated_prog_len", ct.c_uint32),
        ("jited_prog_insns", ct.c_uint64),
        ("xlated_prog_insns", ct.c_uint64),
        ("load_time", ct.c_uint64),
        ("created_by_uid", ct.c_uint32),
        ("nr_map_ids", ct.c_uint32),
        ("map_ids", ct.c_uint64),
        ("name", ct.c_char * 16),
    )


class _CgroupTarget(ct.Structure):
    _fields_ = (("cgroup_id", ct.c_uint64), ("attach_type", ct.c_uint32))


class _NetnsTarget(ct.Structure):
    _fields_ = (("netns_ino", ct.c_uint32), ("attach_type", ct.c_uint32))


class _Target(ct.Union):
    _fields_ = (("cgroup", _CgroupTarget), ("netns", _NetnsTarget), ("room", ct.c_uint8 * 64))


class LinkInfo(ct.Structure):
    """bpf_link_info of cgroup and netns links. A cgroup_id or netns_ino of 0: detached, or what it was attached to is gone."""

    _fields_ = (("type", ct.c_uint32), ("id", ct.c_uint32), ("prog_id", ct.c_uint32), ("target", _Target))


class _MapCreateOptions(ct.Structure):
    _fields_ = (
        ("sz", ct.c_size_t),
        ("btf_fd", ct.c_uint32),
        ("btf_key_type_id", ct.c_uint32),
        ("btf_value_type_id", ct.c_uint32),
        ("btf_vmlinux_value_type_id", ct.c_uint32),
        ("inner_map_fd", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("map_extra", ct.c_uint64),
        ("numa_node", ct.c_uint32),
        ("map_ifindex", ct.c_uint32),
    )


_Info = TypeVar("_Info", bound=ct.Structure)
_SAMPLE = ct.CFUNCTYPE(ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_size_t)

_lib.ring_buffer__new.restype = ct.c_void_p
_lib.ring_buffer__new.argtypes = [ct.c_int, _SAMPLE, ct.c_void_p, ct.c_void_p]
_lib.ring_buffer__epoll_fd.argtypes = [ct.c_void_p]
_lib.ring_buffer__consume.argtypes = [ct.c_void_p]
_lib.ring_buffer__free.argtypes = [ct.c_void_p]
_lib.ring_buffer__free.restype = None
_lib.bpf_map_create.argtypes = [ct.c_int, ct.c_char_p, ct.c_uint32, ct.c_uint32, ct.c_uint32, ct.c_void_p]
_lib.bpf_btf_load.argtypes = [ct.c_char_p, ct.c_size_t, ct.c_void_p]
_lib.bpf_map_lookup_elem.argtypes = [ct.c_int, ct.c_void_p, ct.c_void_p]
_lib.bpf_map_update_elem.argtypes = [ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_uint64]
_lib.bpf_map_delete_elem.argtypes = [ct.c_int, ct.c_void_p]
_lib.bpf_map_get_next_key.argtypes = [ct.c_int, ct.c_void_p, ct.c_void_p]
_lib.bpf_link_create.argtypes = [ct.c_int, ct.c_int, ct.c_int, ct.c_void_p]
_lib.bpf_link_update.argtypes = [ct.c_int, ct.c_int, ct.c_void_p]
_lib.bpf_obj_pin.argtypes = [ct.c_int, ct.c_char_p]
_lib.bpf_obj_get.argtypes = [ct.c_char_p]
_lib.bpf_obj_get_info_by_fd.argtypes = [ct.c_int, ct.c_void_p, ct.POINTER(ct.c_uint32)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


class Descriptor:
    """A kernel object's descriptor that is closed with its owner."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """The descriptor itself."""
        return self.fd

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> "Descriptor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pin(path: Path) -> Descriptor:
    """Open what is pinned at `path`.

    Raises: FileNotFoundError when nothing is pinned there.
    """
    return Descriptor(_checked(_lib.bpf_obj_get(os.fsencode(path)), f"pinned object {path}"))


def pin(fd: int, path: Path) -> None:
    """Pin an object at a free `path` on a bpffs."""
    _checked(_lib.bpf_obj_pin(fd, os.fsencode(path)), f"pinning at {path}")


def replace_pin(fd: int, path: Path) -> None:
    """Pin an object at `path`, in place of what may be there, so that a reader always finds one of the two."""
    fresh = path.with_name(path.name + "_new")
    fresh.unlink(missing_ok=True)
    pin(fd, fresh)
    fresh.rename(path)


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    return _info(fd, MapInfo())


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says of a program."""
    return _info(fd, ProgramInfo())


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of a link."""
    return _info(fd, LinkInfo())


def _info(fd: int, info: _Info) -> _Info:
    size = ct.c_uint32(ct.sizeof(info))
    _checked(_lib.bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)), f"information on descriptor {fd}")
    return info


def create_map(kind: MapType, name: str, sizes: tuple[int, int], entries: int, flags: int = 0, btf: int = 0) -> Descriptor:
    """Create a map; `sizes` are of key and value, `btf` a BTF object whose types 1 and 2 are them (sk_storage asks for it)."""
    options = _MapCreateOptions(sz=ct.sizeof(_MapCreateOptions), map_flags=flags)
    if btf:
        options.btf_fd, options.btf_key_type_id, options.btf_value_type_id = btf, 1, 2
    fd = _lib.bpf_map_create(kind, name.encode(), *sizes, entries, ct.byref(options))
    return Descriptor(_checked(fd, f"map {name}"))


def load_btf(blob: bytes) -> Descriptor:
    """Load type information."""
    return Descriptor(_checked(_lib.bpf_btf_load(blob, len(blob), None), "type information"))


def create_link(program_fd: int, target_fd: int, attach_type: int, what: str) -> Descriptor:
    """Attach a program to a cgroup or network namespace; it stays while the link or a pin of it lives."""
    return Descriptor(_checked(_lib.bpf_link_create(program_fd, target_fd, attach_type, None), f"attaching {what}"))


def update_link(link_fd: int, program_fd: int, what: str) -> None:
    """Put another program in a link's place, atomically."""
    _checked(_lib.bpf_link_update(link_fd, program_fd, None), f"replacing the program of {what}")


class Map:
    """A map by descriptor; keys and values are bytes of exactly its sizes. Closing it leaves the map as it is."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        info = map_info(descriptor.fd)
        self.name: str = info.name.decode()
        self.type: int = info.type
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.capacity: int = info.max_entries
        self.flags: int = info.map_flags
        # A per-CPU map hands out one value per possible CPU, each padded to eight bytes.
        copies = _possible_cpus() if self.type == MapType.PERCPU_ARRAY else 1
        self._room = self.value_size if copies == 1 else copies * (self.value_size + 7 & ~7)

    @classmethod
    def pinned(cls, path: Path) -> "Map":
        """Open a pinned map. Raises: FileNotFoundError when there is none."""
        return cls(open_pin(path))

    def fileno(self) -> int:
        """The map's descriptor."""
        return self._descriptor.fd

    def close(self) -> None:
        """Close the descriptor."""
        self._descriptor.close()

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`; of a per-CPU map all CPUs' values, one after the other."""
        self._check(key)
        value = ct.create_string_buffer(self._room)
        result = _lib.bpf_map_lookup_elem(self.fileno(), key, value)
        if result == -_MISSING:
            return None
        _checked(result, f"map {self.name}")
        return value.raw

    def put(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Write one entry; `flags` are the kernel's (1: only where there is none).

        Raises: OSError with E2BIG when the map is full.
        """
        self._check(key, value)
        _checked(_lib.bpf_map_update_elem(self.fileno(), key, value, flags), f"map {self.name}")

    def delete(self, key: bytes) -> bool:
        """Remove one entry; False when there was none."""
        self._check(key)
        result = _lib.bpf_map_delete_elem(self.fileno(), key)
        if result == -_MISSING or (result == -errno.EINVAL and self.type == MapType.SOCKHASH):
            return False
        _checked(result, f"map {self.name}")
        return True

    def _check(self, key: bytes, value: bytes | None = None) -> None:
        """The kernel reads as many bytes as the map says, whatever it is given."""
        if len(key) != self.key_size or (value is not None and len(value) != self._room):
            raise ValueError(f"map {self.name}: key and value have {self.key_size} and {self._room} bytes")

    def keys(self) -> Iterator[bytes]:
        """Every key, as far as the map stands still; one that is removed meanwhile may restart the walk, which is bounded."""
        current: bytes | None = None
        for _ in range(2 * self.capacity):
            following = ct.create_string_buffer(self.key_size)
            result = _lib.bpf_map_get_next_key(self.fileno(), current, following)
            if result == -_MISSING:
                return
            _checked(result, f"map {self.name}")
            current = following.raw
            yield current

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, with the limits of `keys`."""
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value


def _possible_cpus() -> int:
    count = 0
    for part in Path("/sys/devices/system/cpu/possible").read_text().strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


class RingBuffer:
    """Reads a ring buffer map. `fileno()` becomes readable when there is something to `read`."""

    def __init__(self, map_fd: int, limit: int = 256) -> None:
        self._limit = limit
        self._samples: list[bytes] = []
        self._callback = _SAMPLE(self._take)  # libbpf keeps a pointer to it
        self._ring: Any = _lib.ring_buffer__new(map_fd, self._callback, None, None)
        if not self._ring:
            error = ct.get_errno()
            raise OSError(error, f"ring buffer: {os.strerror(error)}")

    def _take(self, _context: int | None, data: int, size: int) -> int:
        self._samples.append(ct.string_at(data, size))
        # A negative answer ends the reading after this sample, which counts as read.
        return -errno.EAGAIN if len(self._samples) >= self._limit else 0

    def fileno(self) -> int:
        """An epoll descriptor."""
        return int(_lib.ring_buffer__epoll_fd(self._ring))

    def read(self) -> list[bytes]:
        """What is there, at most `limit` samples; the descriptor stays readable when more is left."""
        result = _lib.ring_buffer__consume(self._ring)
        if result != -errno.EAGAIN:
            _checked(result, "ring buffer")
        samples, self._samples = self._samples, []
        return samples

    def close(self) -> None:
        """Unmap the buffer; the map stays."""
        if self._ring:
            _lib.ring_buffer__free(self._ring)
            self._ring = None
