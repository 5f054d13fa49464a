"""A file that changes: read when it has settled, once; what cannot be read is said once and leaves what was."""

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from wire import followed_file
from wire.followed_file import FollowedFile

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_file, "LOOK_S", 0.01)


def following(path: Path, scenario: Callable[[list[str]], Awaitable[None]]) -> list[str]:
    heard: list[str] = []

    def read() -> str:
        text = path.read_text()
        if text == "bad":
            raise ValueError(f"{path}: bad")
        return text

    async def run() -> None:
        task = asyncio.ensure_future(FollowedFile(path).follow(read, heard.append, "what was stays"))
        try:
            await scenario(heard)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return heard


def test_what_is_there_is_known_and_each_change_is_heard_once(tmp_path: Path, eventually: Any) -> None:
    path = tmp_path / "file"
    path.write_text("first")

    async def scenario(heard: list[str]) -> None:
        (tmp_path / "new").write_text("second")
        os.rename(tmp_path / "new", path)
        await eventually(lambda: heard == ["second"])
        path.unlink()
        await asyncio.sleep(0.05)
        path.write_text("third")
        await eventually(lambda: heard == ["second", "third"])

    following(path, scenario)


def test_a_file_is_read_when_nobody_writes_it_any_more(tmp_path: Path, eventually: Any) -> None:
    path = tmp_path / "file"

    async def scenario(heard: list[str]) -> None:
        with path.open("w") as file:
            for piece in "a long text":
                file.write(piece)
                file.flush()
                await asyncio.sleep(0.004)
        await eventually(lambda: heard == ["a long text"])

    following(path, scenario)


@pytest.mark.parametrize("named", [False, True])
def test_what_cannot_be_read_for_a_moment_is_read_after_it_and_said_once(
    named: bool, tmp_path: Path, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A process without descriptors left must not keep a list of who is revoked unread for ever."""
    path, heard, attempts = tmp_path / "file", list[str](), 0

    def read() -> str:
        nonlocal attempts
        attempts += 1
        try:
            if attempts < 4:
                raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            if named:
                raise ValueError(f"{path}: {error}") from error
            raise
        return path.read_text()

    async def run() -> None:
        task = asyncio.ensure_future(FollowedFile(path).follow(read, heard.append, "what was stays"))
        path.write_text("first")
        await eventually(lambda: heard == ["first"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert attempts == 4 and len(caplog.records) == 1 and "Too many open files: what was stays" in caplog.text


def test_what_cannot_be_read_is_said_once(tmp_path: Path, eventually: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("first")

    async def scenario(heard: list[str]) -> None:
        path.write_text("bad")
        await eventually(lambda: caplog.records)
        await asyncio.sleep(0.1)
        path.write_text("better")
        await eventually(lambda: heard == ["better"])

    following(path, scenario)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.message == f"{path}: bad: what was stays"
