"""Files of arrays and texts: written once with their SHA-256, and memory-mapped to read."""

import math
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import merge
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.models.artefact import FileEntry, entry_of

T = TypeVar("T")
_HEADER_LIMIT = 1024
# Smaller files are read. A mapped file that another program cuts short ends the process with SIGBUS when it is read.
_READ_BYTES = 262_144
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>[\s\S]{2})(?P<header>\{'descr': '(?P<dtype><[fi][48])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9]{1,15},(?: [0-9]{1,6},?)?)\), \} *\n)"
)

# Folding runs Python code and holds the GIL, which every search needs for a moment: it pauses after so many items.
_PAUSE_EVERY, _PAUSE_SECONDS = 128, 0.0005
_RUN = 8192  # sorting a million texts at once would hold the GIL for a second


def with_pauses(items: Iterable[T]) -> Iterator[T]:
    """The same items, with short pauses in which other threads run."""
    for count, item in enumerate(items):
        if count % _PAUSE_EVERY == _PAUSE_EVERY - 1:
            time.sleep(_PAUSE_SECONDS)
        yield item


def sorted_positions(items: Sequence[str]) -> list[int]:
    """Positions of the items in ascending order of the items, sorted in runs with pauses."""
    runs = (range(start, min(start + _RUN, len(items))) for start in range(0, len(items), _RUN))
    return list(with_pauses(merge(*(sorted(run, key=items.__getitem__) for run in runs), key=items.__getitem__)))


class Strings:
    """Texts in one block of UTF-8, each decoded when it is read. `ends` are the bytes at which they end."""

    def __init__(self, utf8: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        if len(utf8) != (int(ends[-1]) if len(ends) else 0) or (np.diff(ends, prepend=0) < 0).any():
            raise ValueError("the texts do not end where their file does")
        self._utf8 = utf8
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        start = int(self._ends[row - 1]) if row else 0
        return self._utf8[start : int(self._ends[row])].tobytes().decode()


class Writer:
    """Writes the files of a folder. `entries` has the manifest's entry of every file that is synced to disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, FileEntry] = {}

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with (self.folder / name).open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        self.entries[name] = entry_of(self.folder / name)

    def rows(self, name: str, shape: tuple[int, ...], dtype: type[np.generic], parts: Iterable[NDArray[Any]]) -> None:
        """An .npy file of rows that come in parts. np.save would need them together, and loses the errno."""
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        rows = 0
        with self.create(name) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).data)
                rows += len(part)
        if rows != shape[0]:
            raise ValueError(f"{name} got {rows} rows instead of {shape[0]}")

    def array(self, name: str, values: NDArray[Any]) -> None:
        self.rows(name, values.shape, values.dtype.type, [values])

    def strings(self, name: str, texts: Iterable[str]) -> None:
        """The two files of `Strings`."""
        ends, end = array("q"), 0
        with self.create(f"{name}.utf8") as file:
            for text in texts:
                end += file.write(text.encode())
                ends.append(end)
        self.array(f"{name}.ends.npy", np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64))


def read_array(path: Path) -> NDArray[Any]:
    """What Writer.rows wrote, memory-mapped unless it is small. Raises ValueError if the file is something else.

    np.load parses the header with `ast`, which fails with SystemError now and then when several threads of Python 3.11
    do so at once (python/cpython#106905).
    """
    with path.open("rb") as file:
        start = file.read(_HEADER_LIMIT)
    if not (match := _NPY.match(start)) or int.from_bytes(match["length"], "little") != len(match["header"]):
        raise ValueError(f"{path.name} is not an array")
    dtype = np.dtype(match["dtype"].decode())
    shape = tuple(int(each) for each in match["shape"].decode().split(",") if each.strip())
    size = path.stat().st_size - match.end()
    if size != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{path.name} has {size} bytes of rows, its header says {shape}")
    if size <= _READ_BYTES:
        return _frozen(np.fromfile(path, dtype, math.prod(shape), offset=match.end()).reshape(shape))
    return np.asarray(np.memmap(path, dtype, "r", match.end(), shape))


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False  # like a mapped one
    return values


def read_strings(folder: Path, name: str) -> Strings:
    """What Writer.strings wrote, memory-mapped."""
    path = folder / f"{name}.utf8"
    is_small = path.stat().st_size <= _READ_BYTES
    utf8 = _frozen(np.fromfile(path, np.uint8)) if is_small else np.asarray(np.memmap(path, np.uint8, "r"))
    return Strings(utf8, read_array(folder / f"{name}.ends.npy"))
