"""Files of arrays and texts that are written once, hashed on their way to the disk, and read where they lie."""

import hashlib
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from server.models.artefact import file_sha256

T = TypeVar("T")


# A fold is work of the interpreter, which searches need for moments: so it pauses after every so many items.
_TURN, _PAUSE_SECONDS = 128, 0.0005


def in_turns(items: Iterable[T]) -> Iterator[T]:
    """The same items, letting other threads run now and then."""
    for count, item in enumerate(items):
        if count % _TURN == _TURN - 1:
            time.sleep(_PAUSE_SECONDS)
        yield item


def sorted_in_turns(items: Sequence[str]) -> list[int]:
    """Positions of the items in their order. Sorting a million at once would stop all other threads for a second."""
    runs = (range(start, min(start + 8192, len(items))) for start in range(0, len(items), 8192))
    return list(in_turns(merge(*(sorted(run, key=items.__getitem__) for run in runs), key=items.__getitem__)))


class Strings(Sequence[str]):
    """Texts in one block of UTF-8, each decoded when it is asked for. `ends` are the bytes at which they end."""

    def __init__(self, utf8: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        if len(utf8) != (int(ends[-1]) if len(ends) else 0):
            raise ValueError("the texts do not end where their file does")
        self._utf8 = utf8
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """One text, or a list of them."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._utf8[start : int(self._ends[index])].tobytes().decode()


class HashedFile:
    """A file to write to; it counts and hashes what passes. Arrays go through here because np.save loses the errno."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        """Write anything with a buffer."""
        self._digest.update(data)
        written = self._file.write(data)
        self._bytes += written
        return written

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of the file."""
        return {"sha256": self._digest.hexdigest(), "bytes": self._bytes}


class Writer:
    """Fills a folder. `entries` are what its manifest says of the files; each is on disk when it is in there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create(self, name: str) -> Iterator[HashedFile]:
        """A new file."""
        with (self.folder / name).open("xb") as file:
            hashed = HashedFile(file)
            yield hashed
            file.flush()
            os.fsync(file.fileno())
        self.entries[name] = hashed.entry

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic], parts: Iterable[NDArray[Any]]) -> None:
        """An .npy file of rows that come in parts, so that they need not be in memory together."""
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        rows = 0
        with self.create(name) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).data)
                rows += len(part)
        if rows != shape[0]:
            raise ValueError(f"{name} got {rows} rows instead of {shape[0]}")

    def vector(self, name: str, values: NDArray[Any]) -> None:
        """An .npy file of an array that is in memory."""
        self.array(name, values.shape, values.dtype.type, [values])

    def strings(self, name: str, texts: Iterable[str]) -> None:
        """The two files of `Strings`."""
        ends, end = array("q"), 0
        with self.create(f"{name}.utf8") as file:
            for text in texts:
                end += file.write(text.encode())
                ends.append(end)
        self.vector(f"{name}.ends.npy", np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64))


def check_files(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError or OSError if a file differs from what the manifest says. Reads every byte."""
    for name, entry in entries.items():
        if "/" in name or name.startswith("."):
            raise ValueError(f"the manifest names a file outside: {name}")
        if (folder / name).stat().st_size != entry["bytes"]:
            raise ValueError(f"{name} has another length than its manifest says")
        if file_sha256(folder / name) != entry["sha256"]:
            raise ValueError(f"{name} does not match its SHA-256")


def read_array(path: Path) -> NDArray[Any]:
    """An .npy file, mapped; an empty one cannot be and needs no mapping."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:
        return np.asarray(np.load(path, allow_pickle=False))


def read_strings(folder: Path, name: str) -> Strings:
    """What Writer.strings wrote, mapped."""
    path = folder / f"{name}.utf8"
    utf8 = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.empty(0, np.uint8)
    return Strings(utf8, read_array(folder / f"{name}.ends.npy"))
