"""Reads the columns of a pickled pandas DataFrame without pandas and without trusting the pickle.

A pickle is a program. This reader runs it with a closed list of callables: numpy arrays, and stand-ins for the parts
of pandas that only keep their arguments. Any other name in the pickle is refused before it is looked up.
"""

import io
import lzma
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNPACKED_LIMIT = 64 << 20  # bytes
Array = NDArray[Any]


class UnsafePickle(pickle.UnpicklingError):
    """The pickle names something that is not on the list, or holds no table."""


def read_dataframe(path: Path) -> dict[str, Array]:
    """The columns of an xz-compressed DataFrame, in order. Texts are `str`, or None where missing."""
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    pickled = unpacker.decompress(path.read_bytes(), max_length=UNPACKED_LIMIT)
    if not unpacker.eof:
        raise UnsafePickle(f"{path.name} is cut short, or longer than {UNPACKED_LIMIT} bytes")
    return parse_dataframe(pickled)


def parse_dataframe(pickled: bytes) -> dict[str, Array]:
    """The columns of a pickled DataFrame. Raises UnsafePickle."""
    frame = _ClosedUnpickler(io.BytesIO(pickled)).load()
    manager = getattr(frame, "_mgr", None)
    if not isinstance(manager, _StandIn):
        raise UnsafePickle("the pickle holds no DataFrame")
    blocks, axes = manager.arguments
    names = [str(name) for name in axes[0]["data"]]
    columns: dict[int, Array] = {}
    for block in blocks:
        values, positions, _ = block.arguments
        numbers = range(len(names))[positions] if isinstance(positions, slice) else positions.tolist()
        columns.update(zip(numbers, map(_with_none, values), strict=True))
    if sorted(columns) != list(range(len(names))):
        raise UnsafePickle("the blocks of the DataFrame do not cover its columns")
    return {name: columns[number] for number, name in enumerate(names)}


def _with_none(values: Array) -> Array:
    """Texts with None where one is missing: pandas writes None or the float nan."""
    if values.dtype != object:
        return values
    found = [None if value is None or isinstance(value, float) else str(value) for value in values]
    return np.array(found, dtype=object)


class _StandIn:
    """A DataFrame (its state has `_mgr`), a BlockManager (blocks, axes) or a Block (values, positions, ndim)."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


def _new_index(_: object, state: Mapping[str, Any]) -> Mapping[str, Any]:
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
    ("pandas._libs.internals", "_unpickle_block"): _StandIn,
    ("pandas.core.frame", "DataFrame"): _StandIn,
    ("pandas.core.indexes.base", "Index"): _StandIn,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.range", "RangeIndex"): _StandIn,
    ("pandas.core.internals.managers", "BlockManager"): _StandIn,
}


class _ClosedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickle(f"the pickle names {module}.{name}, which is not allowed") from None

    def persistent_load(self, pid: object) -> Any:
        raise UnsafePickle("the pickle refers to something outside itself")
