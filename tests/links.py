"""What holds an eBPF program where it is attached, from outside of weft."""

import ctypes
from pathlib import Path

from bpf import libbpf


def detach(pin: Path) -> None:
    """Take a pinned link's program off its hook at once; the pin stays. Who only unlinks it waits for the kernel's time."""
    with libbpf.open_pin(pin) as link:
        assert ctypes.CDLL("libbpf.so.1").bpf_link_detach(link.fd) == 0
