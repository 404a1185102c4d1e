"""What is wrong with the files of a collection: damage, and refusals of the operating system, which may end.

Damaged bytes are kept beside the files as `*.damaged`, the newest KEPT_DAMAGED of them.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.domain.errors import CollectionNotFound, CollectionTooNew, CollectionUnreadable, StorageFull
from server.models.artefact import write_durably

KEPT_DAMAGED = 3
SUFFIX = ".damaged"
_TORN = f".torn{SUFFIX}"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors that a file's own state explains. The others, such as EACCES and EMFILE, say nothing about its content.
_OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO, errno.EINVAL)
_LIMIT = 64 << 20  # of a file that is read at once


class Damaged(Exception):
    """A file does not have the content that it must have. The text says which one, without paths."""


@contextmanager
def damage_as_error() -> Iterator[None]:
    """Raise Damaged for all that reading a damaged file may raise. Refusals of the operating system pass."""
    try:
        yield
    except (Damaged, CollectionTooNew):
        raise
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        name = Path(error.filename).name if isinstance(error.filename, str | os.PathLike) else "a file"
        raise Damaged(f"{name}: {(error.strerror or 'it cannot be read').lower()}") from error
    except Exception as error:  # of NumPy, FAISS, the JSON parser, and of values of the wrong type
        why = str(error) if type(error) is ValueError else f"unexpected content ({type(error).__name__})"
        raise Damaged(why) from error


@contextmanager
def refusals_as_errors(name: str, folder: Path | None = None) -> Iterator[None]:
    """Raise StorageFull or CollectionUnreadable for errors of the operating system, and CollectionNotFound if `folder`
    was removed meanwhile, even if another one has its place.
    """
    before = _identity(folder)
    try:
        yield
    except OSError as error:
        if folder is not None and (before is None or before != _identity(folder)):
            raise CollectionNotFound(name, []) from error
        if error.errno in _FULL:
            raise StorageFull(f'the disk is full; collection "{name}" is unchanged') from error
        raise CollectionUnreadable(name, (error.strerror or type(error).__name__).lower()) from error


def _identity(folder: Path | None) -> tuple[int, int] | None:
    if folder is None:
        return None
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return 0, 0  # it cannot be said
    return status.st_dev, status.st_ino


def read_regular(path: Path, start: int = 0, limit: int | None = None) -> bytes:
    """The bytes of a file from `start` on. Raises Damaged for what is no file or too large, and OSError.

    Opening a named pipe or a device would block.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{path.name} is not a regular file")
        if limit is not None and status.st_size > limit:
            raise Damaged(f"{path.name} has {status.st_size} bytes")
        with open(descriptor, "rb", closefd=False) as file:  # a descriptor
            file.seek(start)
            return file.read()
    finally:
        os.close(descriptor)


def read_small(path: Path) -> bytes:
    """A pointer or a manifest."""
    return read_regular(path, limit=_LIMIT)


def keep_bytes(path: Path, start: int, raw: bytes, *, torn: bool = False) -> str:
    """Keep bytes of a file beside it; returns the name of the copy. The same bytes are kept once.

    `torn`: they look like a write that was not acknowledged, so that nothing need be missing.
    """
    copy = path.with_name(f"{path.name}.{start}-{start + len(raw)}{_TORN if torn else SUFFIX}")
    if not copy.exists():
        write_durably(copy, raw)
        _drop_oldest(path.parent)
    return copy.name


def keep_aside(path: Path) -> str:
    """Rename a file or folder that cannot be used; returns its new name."""
    kept = path.with_name(f"{path.name}{SUFFIX}")
    number = 0
    while os.path.lexists(kept):
        kept = path.with_name(f"{path.name}.{(number := number + 1)}{SUFFIX}")
    path.rename(kept)
    _drop_oldest(path.parent)
    return kept.name


def kept_damage(folder: Path) -> list[str]:
    """Names of what is kept and may be missing in the collection, sorted."""
    return _kept(folder, torn=False)


def _kept(folder: Path, *, torn: bool) -> list[str]:
    with suppress(OSError):
        return sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX) and name.endswith(_TORN) is torn)
    return []


def _drop_oldest(folder: Path) -> None:
    for torn, most in ((False, KEPT_DAMAGED), (True, 1)):
        paths = [folder / name for name in _kept(folder, torn=torn)]
        paths.sort(key=lambda path: path.lstat().st_ctime_ns, reverse=True)  # of a renamed file: when it was renamed
        for path in paths[most:]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
