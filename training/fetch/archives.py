"""Reading members of foreign archives (wheels, zips, source distributions) as data.

Nothing is installed, imported, built or unpacked to a path that the archive chooses. Refused are: names that
climb out of a folder, links and devices in place of files, members longer than declared, archives that unpack to
more than a limit, and pointers of Git LFS, which stand where a large file should be.
"""

import gzip
import io
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from training.errors import CarrierRefused
from training.fetch.lock import NESTED, safe_path

NESTED_LIMIT = 512 << 20  # bytes of an archive within an archive
TAR_LIMIT = 512 << 20  # bytes of an unpacked tar; a tar must be read from its beginning to find anything
_CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each member of `wanted` (name -> most bytes it may have) with its content in pieces.

    Members come in the archive's order, each once, and must be read before the next is asked for. Members that
    the archive lacks are left out. Raises CarrierRefused.
    """
    direct = {name: limit for name, limit in wanted.items() if NESTED not in name}
    nested: dict[str, dict[str, int]] = defaultdict(dict)
    for name, limit in wanted.items():
        if NESTED in name:
            outer, inner = name.split(NESTED, 1)
            nested[outer][inner] = limit
    try:
        yield from _read(archive, direct | dict.fromkeys(nested, NESTED_LIMIT), nested)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise CarrierRefused(f"{archive.name} is not a sound archive: {error}") from error


def _read(
    archive: Path, wanted: Mapping[str, int], nested: Mapping[str, Mapping[str, int]]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    members = _tar_members if archive.name.endswith((".tar.gz", ".tgz")) else _zip_members
    for name, chunks in members(archive, wanted):
        if name not in nested:
            yield name, chunks
            continue
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            inner = Path(folder) / Path(name).name
            with inner.open("wb") as file:
                file.writelines(chunks)
            for inner_name, inner_chunks in read_members(inner, nested[name]):
                yield f"{name}{NESTED}{inner_name}", inner_chunks


def _zip_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            _check_name(entry.filename)
            if entry.filename not in wanted:
                continue
            mode = entry.external_attr >> 16
            if entry.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
                raise CarrierRefused(f"{entry.filename} is not a plain file")
            with file.open(entry) as member:
                yield entry.filename, _bounded(member, entry.filename, wanted[entry.filename])


def _tar_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    with gzip.open(archive) as unpacked, tarfile.open(fileobj=_Limited(unpacked, TAR_LIMIT), mode="r|") as file:
        for entry in file:
            _check_name(entry.name)
            if entry.name not in wanted:
                continue
            member = file.extractfile(entry) if entry.isreg() else None
            if member is None:
                raise CarrierRefused(f"{entry.name} is not a plain file")
            yield entry.name, _bounded(member, entry.name, wanted[entry.name])


def _check_name(name: str) -> None:
    try:
        safe_path(name.rstrip("/"))
    except ValueError as error:
        raise CarrierRefused(str(error)) from error


def _bounded(member: IO[bytes], name: str, limit: int) -> Iterator[bytes]:
    """The member's content; the sizes that an archive declares are not believed."""
    seen = 0
    while chunk := member.read(_CHUNK):
        if seen == 0 and chunk.startswith(_LFS_POINTER):
            raise CarrierRefused(f"{name} is a pointer of Git LFS, the file itself is missing")
        seen += len(chunk)
        if seen > limit:
            raise CarrierRefused(f"{name} is longer than {limit} bytes")
        yield chunk


class _Limited(io.RawIOBase):
    """A readable stream that ends in CarrierRefused after `limit` bytes."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise CarrierRefused("the archive unpacks to more than its limit")
        return data
