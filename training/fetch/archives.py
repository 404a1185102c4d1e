"""Reading members of foreign archives (wheels, zips, source distributions) as data.

Nothing is installed, imported, built or unpacked to a path that the archive chooses. ArchiveRefused is raised for
names that lead out of a folder, for links and devices in place of files, for members longer than expected, for
archives that unpack to more than a limit, and for Git LFS pointers, which take the place of a large file.
"""

import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from training.errors import ArchiveRefused
from training.fetch.lock import NESTED, safe_path

NESTED_LIMIT = 512 << 20  # bytes of an archive within an archive
TAR_LIMIT = 512 << 20  # bytes of an unpacked tar, which is read from its beginning
_CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each member of `wanted` (name -> largest size in bytes) with its content in pieces.

    Members come in the archive's order and must be read before the next is requested. Members that the archive lacks
    are left out. Raises ArchiveRefused.
    """
    direct: dict[str, int] = {}
    nested: dict[str, dict[str, int]] = defaultdict(dict)
    for name, limit in wanted.items():
        outer, found, inner = name.partition(NESTED)
        if found:
            nested[outer][inner] = limit
        direct[outer] = NESTED_LIMIT if found else limit
    members = _tar_members if archive.name.endswith((".tar.gz", ".tgz")) else _zip_members
    try:
        for name, chunks in members(archive, direct):
            if name in nested:
                yield from _nested_members(archive.parent, name, chunks, nested[name])
            else:
                yield name, chunks
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ArchiveRefused(f"{archive.name} is damaged: {error}") from error


def _nested_members(
    parent: Path, name: str, chunks: Iterator[bytes], wanted: Mapping[str, int]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        archive = Path(folder) / Path(name).name
        with archive.open("wb") as file:
            file.writelines(chunks)
        for inner_name, inner_chunks in read_members(archive, wanted):
            yield f"{name}{NESTED}{inner_name}", inner_chunks


def _zip_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            _check_name(entry.filename)
            if entry.filename in wanted:
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if entry.is_dir() or kind not in (0, stat.S_IFREG):
                    raise ArchiveRefused(f"{entry.filename} is not a plain file")
                with file.open(entry) as member:
                    yield entry.filename, _bounded(member, entry.filename, wanted[entry.filename])


def _tar_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    unpacked = 0
    with tarfile.open(archive, mode="r|gz") as file:
        for entry in file:
            _check_name(entry.name)
            unpacked += entry.size
            if unpacked > TAR_LIMIT:
                raise ArchiveRefused(f"{archive.name} unpacks to more than its limit of {TAR_LIMIT} bytes")
            if entry.name in wanted:
                member = file.extractfile(entry) if entry.isreg() else None
                if member is None:
                    raise ArchiveRefused(f"{entry.name} is not a plain file")
                yield entry.name, _bounded(member, entry.name, wanted[entry.name])


def _check_name(name: str) -> None:
    try:
        safe_path(name.rstrip("/"))
    except ValueError as error:
        raise ArchiveRefused(str(error)) from error


def _bounded(member: IO[bytes], name: str, limit: int) -> Iterator[bytes]:
    """The member's content, which may exceed the size that the archive declares."""
    seen = 0
    while chunk := member.read(_CHUNK):
        if seen == 0 and chunk.startswith(_LFS_POINTER):
            raise ArchiveRefused(f"{name} is a Git LFS pointer; the file itself is missing")
        seen += len(chunk)
        if seen > limit:
            raise ArchiveRefused(f"{name} is longer than {limit} bytes")
        yield chunk
