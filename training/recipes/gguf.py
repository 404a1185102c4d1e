"""The metadata of a GGUF file, which stands before its tensors: vocabulary, merges, chat template.

The format is that of version 2 and 3: a magic word, counts, then pairs of key and typed value, little-endian.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from training.errors import TrainingError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# Letters of `struct` by GGUF's number of a type.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path: Path) -> dict[str, Any]:
    """All pairs of the file; arrays are lists. Raises TrainingError if it is no such file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Reader(content).pairs()
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise TrainingError(f"{path.name} is not a GGUF file of version 2 or 3") from error


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def pairs(self) -> dict[str, Any]:
        magic, version, _tensors, count = self._numbers("4sIQQ")
        if magic != _MAGIC or version not in (2, 3):
            raise KeyError(version)
        return {self._string(): self._value(*self._numbers("I")) for _ in range(count)}

    def _numbers(self, letters: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{letters}", self._content, self._at)
        self._at += struct.calcsize(f"<{letters}")
        return found

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        self._at += length
        return self._content[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._numbers(_NUMBERS[kind])[0]
        inner, count = self._numbers("IQ")
        if inner in _NUMBERS:
            return list(self._numbers(f"{count}{_NUMBERS[inner]}"))
        return [self._value(inner) for _ in range(count)]
