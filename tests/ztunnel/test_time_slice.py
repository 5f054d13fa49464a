"""A worker asks the kernel for short time slices, and keeps the niceness that it was started with."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from ztunnel.time_slice import _ATTRIBUTES, SLICE_NS

pytestmark = pytest.mark.unit

_SYS_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_CODE = "import ztunnel.time_slice as t; t.take_short_slices(); print(flush=True); input()"


def attributes_of(pid: int) -> tuple[int, ...]:
    found = ctypes.create_string_buffer(_ATTRIBUTES.size)
    number = _SYS_SCHED_GETATTR[os.uname().machine]
    assert not ctypes.CDLL(None).syscall(ctypes.c_long(number), pid, found, _ATTRIBUTES.size, 0)
    return _ATTRIBUTES.unpack(found)


def test_slices_are_short_and_the_niceness_stays() -> None:
    command = ["nice", "-n", "5", sys.executable, "-c", _CODE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        _, policy, _, nice, _, runtime_ns, _, _ = attributes_of(process.pid)
        process.communicate("\n")
    assert (policy, nice) == (os.SCHED_OTHER, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5))
    kernel = tuple(int(part) for part in platform.release().split(".")[:2])
    assert runtime_ns == SLICE_NS or kernel < (6, 12)
