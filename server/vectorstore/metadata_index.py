"""The metadata of documents, turned round: which documents have a value.

A term is a key with a value, written so that the terms of a key lie together, sorted by value: the length of the key
as one character, the key, the value. The documents of a range of values are then one stretch of `rows`.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.vectorstore.files import Writer, in_turns, read_array, read_strings, sorted_in_turns

Rows = NDArray[np.int32]
_DECIMAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)


def number_of(value: str) -> float:
    """The number that a value says, or NaN."""
    return float(value) if _DECIMAL.fullmatch(value) else np.nan


@dataclass(frozen=True, slots=True)
class MetadataIndex:
    """Sorted terms; `rows[ends[i - 1] : ends[i]]` are the documents of term i, and `numbers[i]` is its value's."""

    terms: Sequence[str]
    numbers: NDArray[np.float64]
    ends: NDArray[np.int64]
    rows: Rows

    def with_value(self, key: str, values: Iterable[str]) -> Rows:
        """Documents whose `key` has one of the values."""
        found = [np.empty(0, np.int32)]
        for value in set(values):
            term = _term(key, value)
            at = bisect_left(self.terms, term)
            if at < len(self.terms) and self.terms[at] == term:
                found.append(self._of(at, at + 1))
        return np.concatenate(found)

    def in_text_range(self, key: str, at_least: str | None, at_most: str | None, less_than: str | None) -> Rows:
        """Documents whose value of `key` lies between the bounds that are not None."""
        low, high = self._stretch(key)
        if at_least is not None:
            low = max(low, bisect_left(self.terms, _term(key, at_least)))
        if at_most is not None:
            high = min(high, bisect_right(self.terms, _term(key, at_most)))
        if less_than is not None:
            high = min(high, bisect_left(self.terms, _term(key, less_than)))
        return self._of(low, max(low, high))

    def in_number_range(self, key: str, at_least: float | None, at_most: float | None, less_than: float | None) -> Rows:
        """Documents whose value of `key` is a number between the bounds that are not None."""
        low, high = self._stretch(key)
        inside = in_range(self.numbers[low:high], at_least, at_most, less_than)
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])[low : high + 1]
        return self._of(low, high)[np.repeat(inside, np.diff(starts))]

    def _stretch(self, key: str) -> tuple[int, int]:
        prefix = _term(key, "")
        return bisect_left(self.terms, prefix), bisect_left(self.terms, _after_all_with(prefix))

    def _of(self, low: int, high: int) -> Rows:
        if low == high:
            return np.empty(0, np.int32)
        return self.rows[int(self.ends[low - 1]) if low else 0 : int(self.ends[high - 1])]


def in_range(
    numbers: NDArray[np.float64], at_least: float | None, at_most: float | None, less_than: float | None
) -> NDArray[np.bool_]:
    """Which numbers lie between the bounds that are not None; NaN never does."""
    inside = ~np.isnan(numbers)
    if at_least is not None:
        inside &= numbers >= at_least
    if at_most is not None:
        inside &= numbers <= at_most
    if less_than is not None:
        inside &= numbers < less_than
    return inside


class MetadataIndexWriter:
    """Takes the metadata of documents in their order, then writes them."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._count = 0

    def add(self, metadata: dict[str, str]) -> None:
        """The next document's."""
        for key, value in metadata.items():
            self._rows.setdefault(_term(key, value), array("i")).append(self._count)
        self._count += 1

    def write(self, writer: Writer) -> None:
        """Four files."""
        found = list(self._rows)
        terms = [found[at] for at in sorted_in_turns(found)]
        lengths = (len(self._rows[term]) for term in terms)
        writer.strings("terms", in_turns(terms))
        writer.vector("terms.numbers.npy", np.array([number_of(t[1 + ord(t[0]) :]) for t in terms], np.float64))
        writer.vector("postings.ends.npy", np.cumsum(np.fromiter(lengths, np.int64, len(terms))))
        rows = [np.frombuffer(self._rows[term], np.int32) for term in terms]
        writer.vector("postings.npy", np.concatenate([np.empty(0, np.int32), *rows]))


def read_metadata_index(folder: Path) -> MetadataIndex:
    """What MetadataIndexWriter wrote, mapped."""
    return MetadataIndex(
        read_strings(folder, "terms"),
        read_array(folder / "terms.numbers.npy"),
        read_array(folder / "postings.ends.npy"),
        read_array(folder / "postings.npy"),
    )


def _term(key: str, value: str) -> str:
    return f"{chr(len(key))}{key}{value}"


def _after_all_with(prefix: str) -> str:
    """The first text beyond all that begin with `prefix`, whose first character is a small one."""
    shortened = prefix.rstrip("\U0010ffff")
    return shortened[:-1] + chr(ord(shortened[-1]) + 1)
