"""Bytes that could not be decoded: no message, or one that memory does not suffice to hold. Protobuf raises the same for both.

Who takes the one for the other refuses what is whole: a policy, which its sender would not send again.
"""

from google.protobuf.message import DecodeError

_NO_MEMORY = "Arena alloc failed"


def rule_out_memory(error: DecodeError) -> None:
    """Return where the bytes are to blame. Raises: MemoryError."""
    if _NO_MEMORY in str(error):
        raise MemoryError(str(error)) from error
