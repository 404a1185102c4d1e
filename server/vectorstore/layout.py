"""The folder of one collection: names, numbers, locks, and how a generation comes into it.

    INDEX/NAME/00000007/       the files of a generation: `generation.py`
    INDEX/NAME/00000007.log    the writes after it, up to the next log: `log.py`
    INDEX/NAME/current         the number of the generation that is served, with the logs from its number on

A generation is written aside, synced, renamed, and the pointer moves last, so a process that is killed or a disk that
is full leaves the old one in place. Names that begin with a dot are remains. Everything here blocks.
"""

import errno
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.domain.errors import CollectionNotFound, ServerOverloaded, StorageFull
from server.models.artefact import MANIFEST, POINTER, sync_folder, write_durably

FORMAT = 2  # of a generation's files; 1 had texts line by line, and no log after it
KEPT_GENERATIONS = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBERED = re.compile(r"(\d{8,})(\.log)?")
_LOCK_SECONDS = 2.0


def collection_home(index: Path, name: str) -> Path:
    """The folder of a collection. Raises ValueError for what is no name of one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a collection: {name!r}")
    return index / name


def collection_names(index: Path) -> list[str]:
    """Collections that are there, sorted."""
    folders = index.iterdir() if index.is_dir() else ()
    return sorted(path.name for path in folders if _NAME.fullmatch(path.name) and path.is_dir())


def generation_folder(home: Path, number: int) -> Path:
    """The folder of a generation."""
    return home / f"{number:08}"


def log_path(home: Path, number: int) -> Path:
    """The log of the writes after a number."""
    return home / f"{number:08}.log"


def numbers(home: Path, *, logs: bool = False) -> list[int]:
    """UpstreamStatistics on disk, or logs, ascending."""
    found = (_NUMBERED.fullmatch(path.name) for path in home.iterdir()) if home.is_dir() else ()
    return sorted(int(match[1]) for match in found if match and bool(match[2]) is logs)


def pointer(home: Path) -> int | None:
    """The number of the generation that is served; None if nobody knows."""
    try:
        return int((home / POINTER).read_text())
    except (OSError, ValueError):
        return None


def pointer_stamp(home: Path) -> tuple[int, int] | None:
    """Differs after the pointer was moved, or the collection was made anew; None if it is gone."""
    try:
        status = (home / POINTER).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def locked(home: Path, *, wait: float = _LOCK_SECONDS) -> Iterator[None]:
    """Be the only process that writes to the collection. Raises ServerOverloaded, or CollectionNotFound."""
    try:
        descriptor = os.open(home, os.O_RDONLY)
    except FileNotFoundError:
        raise CollectionNotFound(home.name, collection_names(home.parent)) from None
    try:
        give_up = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= give_up:
                    raise ServerOverloaded(f'collection "{home.name}" is being written by another process') from error
                time.sleep(0.005)
        if not home.exists() or not os.path.samestat(os.fstat(descriptor), home.stat()):
            raise CollectionNotFound(home.name, collection_names(home.parent))
        yield
    finally:
        os.close(descriptor)  # gives up the lock


@contextmanager
def full_disk_told(name: str) -> Iterator[None]:
    """Turn a full disk into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f'the disk is full; collection "{name}" stays as it was') from error
        raise


@contextmanager
def aside(parent: Path) -> Iterator[Path]:
    """A new hidden folder to fill and rename. It is removed at the end if it is still there.

    Its lock tells others that somebody is at work in it: a folder without one is of a process that was killed.
    """
    folder = parent / f".{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def remove_remains(parent: Path) -> None:
    """Remove the hidden folders in which nobody is at work."""
    for folder in (path for path in parent.glob(".*") if path.is_dir()):
        with suppress(OSError):  # somebody is, or removed it meanwhile
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def install(home: Path, number: int, folder: Path) -> Path:
    """Make what was written aside the generation that is served. Call it `locked`."""
    target = generation_folder(home, number)
    if target.exists():  # of somebody who was killed before the pointer moved, or broken
        remove(target)
    sync_folder(folder)
    folder.rename(target)
    try:
        sync_folder(home)
        write_durably(home / POINTER, f"{number}\n".encode())
    except OSError:
        if pointer(home) != number:
            remove(target)
        raise
    return target


def tidy(home: Path) -> None:
    """Remove generations beyond the last ones, logs that none of the kept needs, and remains. Call it `locked`."""
    current = pointer(home)
    kept = [number for number in numbers(home) if current is not None and number <= current][-KEPT_GENERATIONS:]
    with suppress(OSError):  # what stays is tried again next time
        for number in (number for number in numbers(home) if kept and number < kept[0]):
            remove(generation_folder(home, number))
        for number in (number for number in numbers(home, logs=True) if kept and number < kept[0]):
            log_path(home, number).unlink()
        for path in home.glob(".*"):
            if path.is_file():  # a pointer that was never renamed
                path.unlink()
        remove_remains(home)


def remove_unfinished(home: Path, number: int) -> None:
    """Remove a generation of a number that is about to be given: of somebody who was killed before the pointer moved.

    Else it would count as soon as the pointer is beyond it. Call it `locked`.
    """
    folder = generation_folder(home, number)
    if folder.exists():
        remove(folder)
        sync_folder(home)


def remove(folder: Path) -> None:
    """Remove a folder, under a hidden name first: half of one must not look like a whole one."""
    shutil.rmtree(folder.rename(folder.with_name(f".{uuid.uuid4().hex}")), ignore_errors=True)


def link_files(source: Path, target: Path) -> None:
    """Hard links to all files of a generation but its manifest."""
    for path in source.iterdir():
        if path.name != MANIFEST:
            os.link(path, target / path.name)
