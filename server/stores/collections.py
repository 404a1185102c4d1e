"""Collections of documents on disk, in immutable generations.

    INDEX/NAME/00000007/       the files of a generation: `generation.py`
    INDEX/NAME/current         the number of the generation that is served

A write makes a folder aside, syncs it, renames it and moves the pointer last, so a process that is killed or a disk
that is full leaves the old generation in place. Names that begin with a dot are remains; the next write removes them.
Everything here blocks: call it on a thread.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.errors import ModelUnavailable, ServerOverloaded, StorageFull
from server.runtime.artefact import POINTER, sync_folder, write_durably
from server.stores.generation import Content, read_files, write_files

log = logging.getLogger(__name__)

DEMO = "wikipedia"
KEPT_GENERATIONS = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBER = re.compile(r"\d{8}")


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A state of a collection. `newest` is the highest number on disk: another than `number` if that one is broken."""

    collection: str
    number: int
    newest: int
    updated: datetime
    size_bytes: int
    content: Content


def collection_names(index: Path) -> list[str]:
    """Collections that have a generation, sorted."""
    folders = index.iterdir() if index.is_dir() else ()
    return sorted(path.name for path in folders if _NAME.fullmatch(path.name) and _numbers(path))


def newest_number(index: Path, name: str) -> int:
    """Highest generation on disk, 0 if there is none."""
    return max(_numbers(_home(index, name)), default=0)


def open_collection(index: Path, name: str) -> Generation:
    """Read the current generation, or the newest older one that is whole if it is broken.

    Every file is checked against the manifest. Raises ModelUnavailable if no generation is whole.
    """
    home = _home(index, name)
    numbers = _numbers(home)[::-1]
    current = _pointer(home)
    if current is None:
        log.error('collection "%s": its pointer is missing or broken', name)
    for number in numbers:
        if current is not None and number > current:
            continue  # a write that never moved the pointer, so nobody was told of it
        try:
            return _read(home, number, numbers[0])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error('collection "%s": generation %d is broken: %s', name, number, error)
    raise ModelUnavailable(f'collection "{name}" has no generation that is whole. {remedy(name)}')


def remedy(name: str) -> str:
    """How an operator brings a collection back."""
    if name == DEMO:
        return f"Make it with: make train ONLY={DEMO}"
    return "Remove its folder from the index, restart the server and add its documents again"


def write_collection(index: Path, name: str, content: Content, *, replaces: int | None = None) -> Generation:
    """Write the next generation, make it current, and remove those beyond the last three.

    `replaces` is the newest generation that the content was made from; None replaces whatever is there. Raises
    StorageFull, or ServerOverloaded if another process is writing or has made a newer generation than `replaces`.
    The old generation stays then.
    """
    home = _home(index, name)
    try:
        home.mkdir(parents=True, exist_ok=True)
        sync_folder(index)
        with _only_writer(home):
            newest = max(_numbers(home), default=0)
            if replaces not in (None, newest):
                raise ServerOverloaded(f'collection "{name}" was changed by another process; try again')
            for remains in home.glob(".*"):
                _remove(remains)
            generation = _write(home, newest + 1, content)
            for number in _numbers(home)[:-KEPT_GENERATIONS]:
                _remove(_folder(home, number))
            return generation
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f'the disk is full; collection "{name}" stays as it was') from error
        raise


@contextmanager
def _only_writer(home: Path) -> Iterator[None]:
    descriptor = os.open(home, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerOverloaded(f'collection "{home.name}" is being written by another process') from error
        yield
    finally:
        os.close(descriptor)  # gives up the lock


def _write(home: Path, number: int, content: Content) -> Generation:
    aside, target = home / f".{number:08}", _folder(home, number)
    updated = datetime.now(UTC)
    try:
        aside.mkdir()
        write_files(aside, home.name, number, updated, content)
        aside.rename(target)
        sync_folder(home)
        write_durably(home / POINTER, f"{number}\n".encode())
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if _pointer(home) != number:
            shutil.rmtree(target, ignore_errors=True)
        raise
    return Generation(home.name, number, number, updated, _size(target), content)


def _read(home: Path, number: int, newest: int) -> Generation:
    folder = _folder(home, number)
    updated, content = read_files(folder, home.name, number)
    return Generation(home.name, number, newest, updated, _size(folder), content)


def _home(index: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a collection: {name!r}")
    return index / name


def _folder(home: Path, number: int) -> Path:
    return home / f"{number:08}"


def _numbers(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    return sorted(int(path.name) for path in home.iterdir() if _NUMBER.fullmatch(path.name))


def _pointer(home: Path) -> int | None:
    try:
        return int((home / POINTER).read_text())
    except (OSError, ValueError):
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _remove(path: Path) -> None:
    """Remove a folder or file, under a name with a dot first: half a generation must not look like a whole one."""
    hidden = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.old"))
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()
