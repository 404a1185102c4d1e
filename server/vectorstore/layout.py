"""The folder of one collection: names, locks, and how a segment is installed. Everything here blocks.

    INDEX/NAME/00000007/       a segment: the files of generation 7 (segment.py)
    INDEX/NAME/00000007.log    the writes after it, up to the next log (log.py)
    INDEX/NAME/collection.json what does not change: the tenant that created the collection
    INDEX/NAME/current         the pointer: the generation whose segment is served, with the logs from its number on

A segment is written in a staging folder, synced and renamed, and the pointer moves last: after a kill or on a full
disk the old segment is still served. Names that begin with a dot are staging folders or left by killed processes;
names that end with ".damaged" are kept for an operator (damage.py). Other names mean nothing and are left alone.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from server.domain.errors import CollectionNotFound, CollectionTooNew, ServerOverloaded
from server.models.artefact import POINTER, sync_folder, write_durably
from server.vectorstore.damage import Damaged, damage_as_error, keep_aside, read_small

logger = logging.getLogger(__name__)
FORMAT = 2  # of a segment's files; 1 had texts line by line, and no log after it
KEPT_SEGMENTS = 3
PROPERTIES = "collection.json"
_PROPERTIES_FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBERED = re.compile(r"([0-9]{8,16})(\.log)?")
LOCK_SECONDS = 2.0


def collection_folder(index: Path, name: str) -> Path:
    """The folder of a collection. Raises ValueError if `name` is not a valid name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a collection: {name!r}")
    return index / name


def collection_names(index: Path) -> list[str]:
    """Names of all collections, sorted."""
    folders = index.iterdir() if index.is_dir() else ()
    return sorted(path.name for path in folders if _NAME.fullmatch(path.name) and _may_be_folder(path))


def _may_be_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # opening it says why
        return True


def segment_folder(folder: Path, generation: int) -> Path:
    return folder / f"{generation:08}"


def log_path(folder: Path, generation: int) -> Path:
    return folder / f"{generation:08}.log"


def generations_on_disk(folder: Path, *, logs: bool = False) -> list[int]:
    """Generations that have a segment, or a log, ascending."""
    found = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    numbers = (int(match[1]) for match in found if match and bool(match[2]) is logs and _is_canonical(match[1]))
    return sorted(numbers)


def _is_canonical(digits: str) -> bool:
    return digits == f"{int(digits):08}"


def read_pointer(folder: Path) -> int | None:
    """The generation that the pointer names; None if it is missing or damaged. Raises OSError."""
    try:
        with damage_as_error():
            text = read_small(folder / POINTER).decode("ascii").strip()
    except Damaged:
        return None
    return int(text) if text.isdecimal() and len(text) <= 16 else None


def committed_generations(folder: Path, current: int | None) -> list[int]:
    """Generations that have a segment, newest first. One beyond the pointer is of a fold that did not finish."""
    return [each for each in reversed(generations_on_disk(folder)) if current is None or each <= current]


def signature(folder: Path) -> tuple[object, ...]:
    """Changes whenever a file of the folder, or of a folder in it, is written, replaced or gets other permissions."""
    found: list[object] = []
    with suppress(OSError):
        for path in (folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))):
            status = path.lstat()
            found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def pointer_stamp(folder: Path) -> tuple[int, int] | None:
    """Changes whenever the pointer is written; None if there is no pointer."""
    try:
        status = (folder / POINTER).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def write_owner(folder: Path, owner: str) -> None:
    """Record the owner of a collection that is being created."""
    described = {"format": _PROPERTIES_FORMAT, "owner": owner}
    write_durably(folder / PROPERTIES, json.dumps(described).encode() + b"\n")


def read_owner(folder: Path) -> str:
    """The recorded owner of a collection, empty if there is none. Raises Damaged, CollectionTooNew and OSError."""
    if not os.path.lexists(folder / PROPERTIES):  # of an older release, or made outside of the server
        return ""
    with damage_as_error():
        match json.loads(read_small(folder / PROPERTIES)):
            case {"format": int(version), **_others} if version > _PROPERTIES_FORMAT:
                raise CollectionTooNew(folder.name, f"{PROPERTIES} has format {version}")
            case {"format": int(version), "owner": str(owner)} if version == _PROPERTIES_FORMAT:
                return owner
        raise Damaged(f"{PROPERTIES} has unexpected content")


def owner_of_broken(folder: Path) -> str:
    """As read_owner(), and empty if the record cannot be read."""
    try:
        return read_owner(folder)
    except (Damaged, CollectionTooNew, OSError) as error:
        logger.error('the owner of collection "%s" is unknown: %s', folder.name, error)
        return ""


@contextmanager
def _flock(folder: Path, wait: float = 0.0) -> Iterator[int]:
    """Hold the lock of a folder. Raises BlockingIOError if another process still holds it after `wait` seconds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        give_up = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.005)
        yield descriptor
    finally:
        os.close(descriptor)  # releases the lock


@contextmanager
def locked(folder: Path, *, wait: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of the one process that may write. Raises ServerOverloaded, or CollectionNotFound."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(_flock(folder, wait))
            is_there = os.path.samestat(os.fstat(descriptor), folder.stat())
        except BlockingIOError as error:
            raise ServerOverloaded(f'another process is writing to collection "{folder.name}"') from error
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise CollectionNotFound(folder.name, ())
        yield


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder, locked, to fill and then rename. It is removed at the end if it was not renamed."""
    folder = parent / f".{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        with _flock(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the staging folders of processes that were killed: those that are not locked."""
    for folder in (path for path in parent.glob(".*") if path.is_dir() and not path.is_symlink()):
        with suppress(OSError), _flock(folder):  # else it is in use, or was just removed
            shutil.rmtree(folder, ignore_errors=True)


def install(folder: Path, generation: int, staged: Path) -> Path:
    """Rename a staged segment into place and move the pointer to it. Call it `locked`."""
    target = segment_folder(folder, generation)
    if os.path.lexists(target):  # broken, or of a process that was killed before it moved the pointer
        remove(target)
    pointer = folder / POINTER
    if pointer.is_dir() and not pointer.is_symlink():  # a file cannot be renamed over it
        keep_aside(pointer)
    sync_folder(staged)
    staged.rename(target)
    try:
        sync_folder(folder)
        write_durably(folder / POINTER, f"{generation}\n".encode())
    except OSError:
        if read_pointer(folder) != generation:
            remove(target)
        raise
    return target


def remove_obsolete(folder: Path) -> None:
    """Remove segments beyond the last KEPT_SEGMENTS, logs that no kept one needs, and left files. Call it `locked`."""
    with suppress(OSError):  # the next call tries again
        current = read_pointer(folder)
        kept = committed_generations(folder, current)[:KEPT_SEGMENTS]
        oldest = kept[-1] if kept and current is not None else 0
        for number in generations_on_disk(folder):
            if number < oldest:
                remove(segment_folder(folder, number))
        for number in generations_on_disk(folder, logs=True):
            if number < oldest:
                remove(log_path(folder, number))
        for path in folder.glob(".*"):
            if path.is_file():  # a pointer that was never renamed
                path.unlink()
        remove_abandoned(folder)


def remove(path: Path) -> None:
    """Remove a folder, or what is there in its place. It gets a hidden name first: a half removed one must not look
    whole.
    """
    hidden = path.rename(path.with_name(f".{uuid.uuid4().hex}"))
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        hidden.unlink()
