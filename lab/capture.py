"""What crosses a link: tcpdump inside a network namespace, and questions to its record."""

import os
import re
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path

from lab.layout import netns_path
from wire.netns import entered, open_home

_PATIENCE_S = 60.0
_POLL_S = 0.05
_BUFFER_KIB = 32768
_EXPERIMENTAL = 0x88B5
"""An EtherType for whatever one likes (IEEE 802)."""


class Capture:
    """Records an interface while its block runs. Sees whole packets, and all of them."""

    def __init__(self, netns: str, interface: str, path: Path) -> None:
        self._netns, self._interface, self._path = netns, interface, path
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Capture":
        command = ["ip", "netns", "exec", self._netns, "tcpdump", "-i", self._interface, "-s", "0", "-U", "-Z", "root"]
        record = ["-B", str(_BUFFER_KIB), "-w", str(self._path)]
        self._process = subprocess.Popen([*command, *record], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:  # it says so when the first packet can no longer be missed
            if "listening on" in line:
                return self
        raise OSError(f"tcpdump in {self._netns} ended at once: is there an interface {self._interface}?")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises: OSError when packets are missing."""
        assert self._process is not None
        try:
            if kind is None:
                self._catch_up()
        finally:
            said = self._end()
        lost = re.search(r"^([1-9]\d*) packets? dropped by kernel", said, re.MULTILINE)
        if kind is None and lost:
            raise OSError(f"tcpdump in {self._netns} missed {lost[1]} packets: this machine is too busy for it")

    def _end(self) -> str:
        """End tcpdump, one that hangs as well; its last words."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.communicate(timeout=_PATIENCE_S)[1]
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.communicate()[1]

    def _catch_up(self) -> None:
        """Wait until a frame of our own is in the record, and with it all that came before: tcpdump ends without the rest."""
        assert self._process is not None
        token, until = secrets.token_bytes(32), time.monotonic() + _PATIENCE_S
        while token not in self.raw():
            if self._process.poll() is not None:
                raise OSError(f"tcpdump in {self._netns} has ended before its time: {self._end().strip() or 'it says nothing'}")
            if time.monotonic() > until:
                raise OSError(f"tcpdump in {self._netns} records nothing of {self._interface} any more")
            self._send(token)  # again, as this one may be lost like any other
            time.sleep(_POLL_S)

    def _send(self, payload: bytes) -> None:
        netns, home = os.open(netns_path(self._netns), os.O_RDONLY | os.O_CLOEXEC), open_home()
        try:
            with entered(netns, home):
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        finally:
            os.close(netns)
            os.close(home)
        interface = "lo" if self._interface == "any" else self._interface
        with sock:
            sock.sendto(payload, (interface, _EXPERIMENTAL, socket.PACKET_HOST, 0, bytes(6)))

    def raw(self) -> bytes:
        """The record as it is: headers and payloads."""
        return self._path.read_bytes()

    def packets(self, expression: str) -> int:
        """How many packets match a pcap filter."""
        result = subprocess.run(
            ["tcpdump", "-nn", "-r", str(self._path), expression], capture_output=True, text=True, check=True, timeout=100
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
