"""What crosses a link: tcpdump inside a network namespace, and questions to its record."""

import signal
import subprocess
from pathlib import Path

_PATIENCE_S = 10.0


class Capture:
    """Records an interface while its block runs. Sees whole packets."""

    def __init__(self, netns: str, interface: str, path: Path) -> None:
        self._netns, self._interface, self._path = netns, interface, path
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Capture":
        command = [
            "ip",
            "netns",
            "exec",
            self._netns,
            "tcpdump",
            "-i",
            self._interface,
            "-s",
            "0",
            "-U",
            "-Z",
            "root",
            "--immediate-mode",
        ]
        self._process = subprocess.Popen([*command, "-w", str(self._path)], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:  # it says so when the first packet can no longer be missed
            if "listening on" in line:
                return self
        raise OSError(f"tcpdump in {self._netns} ended at once: is there an interface {self._interface}?")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=_PATIENCE_S)

    def raw(self) -> bytes:
        """The record as it is: headers and payloads."""
        return self._path.read_bytes()

    def packets(self, expression: str) -> int:
        """How many packets match a pcap filter."""
        result = subprocess.run(
            ["tcpdump", "-nn", "-r", str(self._path), expression], capture_output=True, text=True, check=True, timeout=30
        )
        return len(result.stdout.splitlines())

    def tls_records(self, port: int) -> int:
        """Packets of a port whose payload starts as a TLS record of application data or of a handshake does."""
        start = "(tcp[12] & 0xf0) >> 2"
        return self.packets(f"tcp port {port} and (tcp[{start}:2] = 0x1703 or tcp[{start}:2] = 0x1603)") + self._tls6(port)

    def _tls6(self, port: int) -> int:
        # pcap cannot look into TCP over IPv6 by name: IPv6 without extension headers has its TCP header at byte 40.
        start = "40 + ((ip6[52] & 0xf0) >> 2)"
        return self.packets(f"ip6 and tcp port {port} and (ip6[{start}:2] = 0x1703 or ip6[{start}:2] = 0x1603)")
