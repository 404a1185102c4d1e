"""Reading a table out of a pickled pandas DataFrame without pandas, and without trusting the pickle.

A pickle is a program. This reader runs it with a closed list of callables: arrays of numpy, and stand-ins for the
parts of pandas that only keep what they are given. Whatever else the pickle names is refused before it is looked up.
"""

import io
import lzma
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNPACKED_LIMIT = 64 << 20  # bytes
Array = NDArray[Any]


class UnsafePickle(pickle.UnpicklingError):
    """The pickle asks for something that is not on the list, or holds no table."""


def read_frame(path: Path) -> dict[str, Array]:
    """The columns of an xz-packed DataFrame, in order. Texts are `str`, or None where missing."""
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    pickled = unpacker.decompress(path.read_bytes(), max_length=UNPACKED_LIMIT)
    if not unpacker.eof:
        raise UnsafePickle(f"{path.name} is cut short, or longer than {UNPACKED_LIMIT} bytes")
    return parse_frame(pickled)


def parse_frame(pickled: bytes) -> dict[str, Array]:
    """The columns of a pickled DataFrame. Raises UnsafePickle."""
    frame = _ClosedUnpickler(io.BytesIO(pickled)).load()
    manager = getattr(frame, "_mgr", None)
    if not isinstance(frame, _Frame) or not isinstance(manager, _Manager):
        raise UnsafePickle("the pickle holds no DataFrame")
    names = [str(name) for name in manager.axes[0]["data"]]
    columns: dict[int, Array] = {}
    for block in manager.blocks:
        places = block.places
        numbers = range(len(names))[places] if isinstance(places, slice) else places.tolist()
        columns.update(zip(numbers, map(_tidy, block.values), strict=True))
    if sorted(columns) != list(range(len(names))):
        raise UnsafePickle("the blocks of the DataFrame do not cover its columns")
    return {name: columns[number] for number, name in enumerate(names)}


def _tidy(values: Array) -> Array:
    if values.dtype != object:
        return values
    # A missing text is None or the float nan.
    return np.array(
        [None if value is None or isinstance(value, float) else str(value) for value in values], dtype=object
    )


class _Frame:
    """Stands in for DataFrame; the pickle puts a manager into `_mgr`."""


@dataclass(frozen=True)
class _Block:
    """Columns of one type: `values[i]` is the column with the number `places[i]`."""

    values: Array
    places: Array | slice
    dimensions: int


@dataclass(frozen=True)
class _Manager:
    """Stands in for BlockManager: blocks, and the axes that name columns and rows."""

    blocks: tuple[_Block, ...]
    axes: list[Any]


class _Index:
    """Stands in for Index and RangeIndex, which are only handed to `_new_index`."""


def _new_index(_: type[_Index], state: Mapping[str, Any]) -> Mapping[str, Any]:
    return state


def _from_buffer(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Array:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _reconstruct(kind: type[Array], shape: tuple[int, ...], code: bytes) -> Array:
    if kind is not np.ndarray:
        raise UnsafePickle("the pickle rebuilds something that is not an array")
    return np.ndarray(shape, dtype=code.decode("ascii"))


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "slice"): slice,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.indexes.base", "Index"): _Index,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.range", "RangeIndex"): _Index,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
}


class _ClosedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickle(f"the pickle names {module}.{name}, which is not allowed") from None

    def persistent_load(self, pid: object) -> Any:
        raise UnsafePickle("the pickle refers to something outside itself")
