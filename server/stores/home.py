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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.errors import CollectionNotFound, ServerOverloaded, StorageFull
from server.runtime.artefact import MANIFEST, POINTER, sync_folder, write_durably

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
    """Generations on disk, or logs, ascending."""
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


def write_aside(home: Path, number: int, fill: Callable[[Path], None]) -> Path:
    """Let `fill` make a generation in a folder aside. If it fails nothing remains."""
    aside = home / f".{number:08}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        sync_folder(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return aside


def install(home: Path, number: int, aside: Path) -> Path:
    """Make what was written aside the generation that is served. Call it `locked`."""
    target = generation_folder(home, number)
    if target.exists():  # of somebody who was killed before the pointer moved, or broken
        remove(target)
    try:
        aside.rename(target)
        sync_folder(home)
        write_durably(home / POINTER, f"{number}\n".encode())
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if pointer(home) != number:
            shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def tidy(home: Path) -> None:
    """Remove generations beyond the last ones, logs that none of the kept needs, and remains. Call it `locked`."""
    current = pointer(home)
    if current is None:
        return
    kept = [number for number in numbers(home) if number <= current][-KEPT_GENERATIONS:]
    with suppress(OSError):  # what stays is tried again next time
        for number in numbers(home):
            if kept and number < kept[0]:
                remove(generation_folder(home, number))
        for number in numbers(home, logs=True):
            if kept and number < kept[0]:
                log_path(home, number).unlink()
        for remains in home.glob(".*"):
            if remains.suffix == ".old":
                remove(remains)


def remove(path: Path) -> None:
    """Remove a folder, under a name with a dot first: half of one must not look like a whole one."""
    hidden = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.{os.getpid()}.old"))
    shutil.rmtree(hidden)


def link_files(source: Path, target: Path) -> None:
    """Hard links to all files of a generation but its manifest."""
    for path in source.iterdir():
        if path.name != MANIFEST:
            os.link(path, target / path.name)
