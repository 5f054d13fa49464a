"""Secrets in the kernel's memory that outlive the process which put them there: root's user keyring (keyrings(7)).

A reboot loses them, no disk sees them, and each has a time at which the kernel itself destroys it. All processes of a user
share the keyring, in whatever session, container or pod (but in another user namespace): what is stored here must be sealed.

Keys are named `weft:INSTALLATION:NODE:NAME`, so that several installations and nodes of one kernel have their own. Whoever is
to read and replace keys that another process made must possess them, by a link from its own thread's keyring.
"""

import ctypes
import errno
import math
import os
import struct
from urllib.parse import quote

MAX_PAYLOAD_BYTES = 32767
"""The kernel's bound for the key type "user"."""
UNAVAILABLE = (errno.ENOSYS, errno.EPERM)
"""The kernel has no keyrings, or a seccomp profile forbids them."""
_GONE = (errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED)
_TYPE = b"user"
_THREAD_KEYRING, _USER_KEYRING = -1, -4
_REVOKE, _DESCRIBE, _LINK, _UNLINK, _SEARCH, _READ, _SET_TIMEOUT = 3, 6, 8, 9, 10, 11, 15
_MAX_DESCRIPTION_BYTES = 4096
_ADD_KEY, _KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(os.uname().machine, (-1, -1))
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def scope(installation: str, node: str = "") -> str:
    """How the names of an installation's keys begin, or of one of its nodes."""
    return f"weft:{quote(installation, safe='')}:" + (f"{quote(node, safe='')}:" if node else "")


def store(name: str, payload: bytes, lifetime_s: float) -> None:
    """Store a key or replace it; the kernel destroys it when its life is over.

    It counts whole seconds: that is up to one before its life, rounded up, has passed.

    Raises: OSError; EDQUOT when root's keys are too many or too large.
    """
    _possess()
    arguments = (_TYPE, name.encode(), payload, ctypes.c_size_t(len(payload)), ctypes.c_long(_USER_KEYRING))
    serial = _call(_ADD_KEY, *arguments)
    _keyctl(_SET_TIMEOUT, serial, max(math.ceil(lifetime_s), 1))


def read(name: str) -> bytes | None:
    """A key that lives. Raises: OSError."""
    _possess()
    try:
        return _read(_find(name))
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def forget(name: str) -> None:
    """Destroy a key, if it is there. Raises: OSError."""
    _possess()
    try:
        serial = _find(name)
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    _destroy(serial)


def names(beginning: str) -> list[str]:
    """The keys whose names begin so, expired ones too as long as the kernel shows them. Raises: OSError."""
    return sorted(_serials(beginning))


def forget_all(beginning: str) -> None:
    """Destroy all keys whose names begin so; without keyrings there are none. Raises: OSError."""
    try:
        found = _serials(beginning)
    except OSError as error:
        if error.errno in UNAVAILABLE:
            return
        raise
    for serial in found.values():
        _destroy(serial)


def _possess() -> None:
    # Of this thread, and gone with it: nothing that is executed later inherits it.
    _keyctl(_LINK, _USER_KEYRING, _THREAD_KEYRING)


def _find(name: str) -> int:
    return _keyctl(_SEARCH, _USER_KEYRING, _TYPE, name.encode(), 0)


def _destroy(serial: int) -> None:
    # Revoking wipes the payload at once, whoever else has a link to it.
    for operation in ((_REVOKE, serial), (_UNLINK, serial, _USER_KEYRING)):
        try:
            _keyctl(*operation)
        except OSError as error:
            if error.errno not in (*_GONE, errno.ENOENT):
                raise


def _read(serial: int) -> bytes:
    size = MAX_PAYLOAD_BYTES
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = _keyctl(_READ, serial, buffer, ctypes.c_size_t(size))
        if needed <= size:  # a keyring may have grown meanwhile
            return buffer.raw[:needed]
        size = needed


def _serials(beginning: str) -> dict[str, int]:
    _possess()
    data = _read(_USER_KEYRING)
    found = {}
    for (serial,) in struct.iter_unpack("=i", data[: len(data) // 4 * 4]):
        try:
            name = _name(serial)
        except OSError as error:
            if error.errno not in (*_GONE, errno.EACCES):  # somebody else's, or gone since
                raise
            continue
        if name.startswith(beginning):
            found[name] = serial
    return found


def _name(serial: int) -> str:
    buffer = ctypes.create_string_buffer(_MAX_DESCRIPTION_BYTES + 64)
    _keyctl(_DESCRIBE, serial, buffer, ctypes.c_size_t(len(buffer)))
    kind, _, _, _, name = buffer.value.decode(errors="replace").split(";", 4)
    return name if kind == _TYPE.decode() else ""


def _keyctl(operation: int, *arguments: "int | bytes | ctypes.Array[ctypes.c_char] | ctypes.c_size_t") -> int:
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _call(_KEYCTL, ctypes.c_long(operation), *passed)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"kernel keyring: {os.strerror(error)}")
    return result
