"""What a store does with files and folders: lock, link, swap, remove."""

import contextlib
import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def state_of(path: Path) -> tuple[object, ...]:
    """What changes with the file, its permissions included; for a link that leads nowhere, those of the link."""
    try:
        found = path.stat()
    except OSError:
        found = path.lstat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a model's folder; other publishers wait."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def exchange(left: Path, right: Path) -> None:
    """Swap two folders in one step with renameat2(2) of Linux; where that fails, with three renames."""
    paths = (os.fsencode(left.absolute()), os.fsencode(right.absolute()))
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None or rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        old = right.with_name(f"{left.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        right.replace(old)
        left.replace(right)
        old.replace(left)


def remove(path: Path) -> None:
    """A folder, or whatever else stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def place(source: str, target: str) -> None:
    """Link a file, or copy it where that is not possible, and sync it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())
