"""What commands say of a daemon that ends while they wait for it."""

import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import client
from lab.claim import held
from lab.client import Lab, LabError
from lab.layout import Layout
from wire.places import Places

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"])
def test_a_daemon_that_ends_before_it_has_answered_is_quoted(tmp_path: Path, answer: bytes) -> None:
    lab = Lab(Layout(Places(tmp_path / "r", tmp_path / "s", "weft-test")))
    for folder in (lab.layout.socket.parent, lab.layout.logs):
        folder.mkdir(parents=True)
    (lab.layout.logs / "lab.log").write_text("one\ntwo\nthree\nno memory is left: ending\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(lab.layout.socket))
        listener.listen()

        def end() -> None:
            daemon, _ = listener.accept()
            with daemon:
                while not daemon.recv(65536).endswith(b"\r\n\r\n"):
                    pass
                daemon.sendall(answer)

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(LabError) as said:
            lab.status()
        ending.join()
    ended = "the daemon of this lab has ended (before it answered): "
    mend = "weft lab up takes over what still runs, weft lab down removes it; its last words:"
    assert str(said.value).splitlines() == [ended + mend, "two", "three", "no memory is left: ending"]


def test_who_waits_for_another_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SILENT_S", 0.0)
    lab = Lab(Layout(Places(tmp_path / "r", tmp_path / "s", f"weft-test-{os.getpid()}")))
    said: list[str] = []
    with ExitStack() as other:
        assert other.enter_context(held(f"{lab.layout.places.prefix}:command", 0))

        def tell(line: str) -> None:
            said.append(line)
            other.close()

        with lab._alone(tell):
            assert said == ["waiting for another weft lab up or down that is at work on this lab"]
        with lab._alone(tell):
            assert len(said) == 1, "nobody is waited for"
