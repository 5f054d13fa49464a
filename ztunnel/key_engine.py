"""A short way to read elliptic-curve keys, for OpenSSL 3.0 and 3.1.

They ask all decoders that there are about the key of each certificate, 100 us of every handshake at each end (3.2 remembers the
answer); unless an ENGINE is there for keys of that type: then their older code reads it, in 3 us. So there is one, which adds
nothing: whoever asks it what to work with gets the library's own methods. What is verified, and how, is the same.
"""

import _ssl
import ctypes
import ssl
from typing import Any

_FIRST, _LAST = (3, 0), (3, 1)
"""Releases in which it saves something."""
_EC = 408  # NID_X9_62_id_ecPublicKey
_ID, _NAME = b"weft-ec", b"elliptic curves, by OpenSSL's own methods"
_types = (ctypes.c_int * 1)(_EC)
_Pointer = ctypes.c_void_p
_Methods = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.POINTER(_Pointer), ctypes.POINTER(_Pointer), ctypes.c_int)
_kept: list[Any] = []
"""What OpenSSL has pointers to, for the life of the process."""


def read_keys_fast() -> bool:
    """Have this process read keys so from now on; whether it does. Without it all is as it was, but slower."""
    if _kept:
        return True
    if not _FIRST <= ssl.OPENSSL_VERSION_INFO[:2] <= _LAST:
        return False
    try:
        library = ctypes.CDLL(_ssl.__file__)
        find, new, free = library.EVP_PKEY_meth_find, library.ENGINE_new, library.ENGINE_free
        set_id, set_name, set_methods = library.ENGINE_set_id, library.ENGINE_set_name, library.ENGINE_set_pkey_meths
        register = library.ENGINE_register_pkey_meths
    except (AttributeError, OSError):  # built without engines, or `_ssl` does not tell which library it uses
        return False
    find.restype = new.restype = _Pointer
    set_id.argtypes = set_name.argtypes = (_Pointer, ctypes.c_char_p)
    set_methods.argtypes, register.argtypes, free.argtypes = (_Pointer, _Methods), (_Pointer,), (_Pointer,)
    own = find(_EC)
    engine = new()
    if not own or not engine:
        return False

    def answer(_engine: object, method: Any, types: Any, kind: int) -> int:
        """ENGINE_PKEY_METHS_PTR: without a `method` to fill in, it is asked for the types; 0: it has none for this one."""
        if not method:
            types[0] = ctypes.addressof(_types)
            return len(_types)
        method[0] = own if kind == _EC else None
        return int(kind == _EC)

    methods = _Methods(answer)
    if not (set_id(engine, _ID) and set_name(engine, _NAME) and set_methods(engine, methods) and register(engine)):
        free(engine)
        return False
    _kept.append(methods)
    return True
