"""ReloadingFile: what it reads, what it refuses, and that its end waits for nothing."""

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.domain import reloading_file
from server.domain.reloading_file import BadFile, Contents, ReloadingFile
from tests.waiting import until


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _nothing(path: Path) -> None:
    """The file has gone."""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading_file, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(reloading_file, "_END_SECONDS", 0.1)


KINDS: list[tuple[Callable[[Path], None], str]] = [
    (_fifo, "not a regular file"),
    (_folder, "not a regular file"),
    (_device, "not a regular file"),
    (_socket, "no such device or address"),
    (_loop, "too many levels of symbolic links"),
    (_huge, "larger than 16777216 bytes"),
    (_nothing, "no such file or directory"),
]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(("put", "why"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
async def test_what_is_no_file_is_a_problem_until_it_is_one_again(
    tmp_path: Path, put: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "words"
    path.write_text("first")
    file = ReloadingFile("words", [path], lambda contents: contents[0].decode())
    async with file.reloading():
        path.unlink()
        put(path)
        await until(lambda: file.problem, 5)
        assert file.problem == f"{path}: {why}"
        assert file.latest == "first"
        _remove(path)
        path.write_text("second")
        await until(lambda: file.latest == "second", 5)
        assert not file.problem
    _remove(path)
    put(path)
    started = time.monotonic()
    with pytest.raises(BadFile) as caught:
        ReloadingFile("words", [path], lambda contents: contents)
    assert str(caught.value) == f"{path}: {why}"
    assert time.monotonic() - started < 5, "opening a FIFO waits for a writer"


async def test_following_goes_on_after_a_defect_and_after_what_made_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "words"
    path.write_text("first")

    def make(contents: Contents) -> str:
        if contents[0] == b"defect":
            raise MemoryError
        return contents[0].decode()

    file = ReloadingFile("words", [path], make)
    async with file.reloading():
        path.write_text("defect")
        await until(lambda: file.problem)
        assert file.problem == "words: reloading failed; the server's log says why"
        path.write_text("second")
        await until(lambda: file.latest == "second")
        assert not file.problem


async def test_the_end_does_not_wait_for_a_file_that_is_being_made(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("first")
    making, release = threading.Event(), threading.Event()

    def make(contents: Contents) -> bytes:
        if contents[0] != b"first":
            making.set()
            release.wait(30)
        return contents[0]

    file = ReloadingFile("words", [path], make)
    async with asyncio.timeout(20):
        async with file.reloading():
            path.write_text("second")
            await until(making.is_set)
            started = time.monotonic()
        assert time.monotonic() - started < 5
    release.set()
