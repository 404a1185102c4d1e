"""An inverted index of metadata: which documents have a value. And which documents fulfil the filters of a query.

A term is a key with a value, written so that the terms of a key lie together, sorted by value: the length of the key
as one character, the key, the value. The documents of a range of values are then one range of `rows`.
"""

import operator
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import MetadataFilter, NumberRange, TextRange, ValueIn
from server.vectorstore.files import Strings, Writer, read_array, read_strings, sorted_positions, with_pauses

Rows = NDArray[np.int32]
_DECIMAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class MetadataIndex:
    """Of a segment. `rows[ends[i - 1] : ends[i]]` are the documents of the sorted term i; `numbers[i]` is its value as
    a number, or NaN.
    """

    terms: Strings
    numbers: NDArray[np.float64]
    ends: NDArray[np.int64]
    rows: Rows

    def matching(self, filters: Iterable[MetadataFilter]) -> Rows:
        """Rows of the documents that fulfil all filters, at least one, ascending."""
        return reduce(np.intersect1d, (np.unique(self._matching(each)) for each in filters))

    def _matching(self, wanted: MetadataFilter) -> Rows:
        match wanted:
            case ValueIn(key, values):
                found = (self._rows(*self._equal(_term(key, value))) for value in set(values))
                return np.concatenate([_NONE, *found])
            case TextRange(key):
                low, high = self._terms_of(key)
                if wanted.at_least is not None:
                    low = max(low, bisect_left(self.terms, _term(key, wanted.at_least)))
                if wanted.at_most is not None:
                    high = min(high, bisect_right(self.terms, _term(key, wanted.at_most)))
                if wanted.less_than is not None:
                    high = min(high, bisect_left(self.terms, _term(key, wanted.less_than)))
                return self._rows(low, max(low, high))
            case NumberRange(key):
                low, high = self._terms_of(key)
                inside = _in_range(self.numbers[low:high], wanted)
                starts = np.concatenate([np.zeros(1, np.int64), self.ends])[low : high + 1]
                return self._rows(low, high)[np.repeat(inside, np.diff(starts))]

    def _terms_of(self, key: str) -> tuple[int, int]:
        """The range of the key's terms."""
        prefix = _term(key, "")
        # The first text beyond all that begin with `prefix`; its first character, a length, is small.
        shortened = prefix.rstrip("\U0010ffff")
        beyond = shortened[:-1] + chr(ord(shortened[-1]) + 1)
        return bisect_left(self.terms, prefix), bisect_left(self.terms, beyond)

    def _equal(self, term: str) -> tuple[int, int]:
        return bisect_left(self.terms, term), bisect_right(self.terms, term)

    def _rows(self, low: int, high: int) -> Rows:
        """Documents of the terms from `low` to before `high`."""
        if low == high:
            return _NONE
        return self.rows[int(self.ends[low - 1]) if low else 0 : int(self.ends[high - 1])]


def matching_rows(values: Mapping[str, Mapping[str, list[int]]], filters: Iterable[MetadataFilter]) -> Rows:
    """The same for documents in memory, given as key to value to rows. Another thread may be adding to `values`.

    Looks at every value of the key: a memtable has few.
    """

    def matching(wanted: MetadataFilter) -> Rows:
        copied = list(values.get(wanted.key, {}).items())  # at once, before the writer adds to it
        found = (np.array(list(rows), np.int32) for value, rows in copied if _fulfils(value, wanted))
        return np.unique(np.concatenate([_NONE, *found]))

    return reduce(np.intersect1d, map(matching, filters))


def _fulfils(value: str, wanted: MetadataFilter) -> bool:
    match wanted:
        case ValueIn(_, values):
            return value in values
        case TextRange():
            return all(compare(value, bound) for compare, bound in _bounds(wanted))
        case NumberRange():
            return bool(_in_range(np.array([_number(value)]), wanted)[0])


def _in_range(numbers: NDArray[np.float64], wanted: NumberRange) -> NDArray[np.bool_]:
    """Which numbers lie within the bounds; NaN never does."""
    inside = ~np.isnan(numbers)
    for compare, bound in _bounds(wanted):
        inside &= compare(numbers, bound)
    return inside


def _bounds(wanted: TextRange | NumberRange) -> list[tuple[Callable[[Any, Any], Any], Any]]:
    bounds = ((operator.ge, wanted.at_least), (operator.le, wanted.at_most), (operator.lt, wanted.less_than))
    return [(compare, bound) for compare, bound in bounds if bound is not None]


def _number(value: str) -> float:
    return float(value) if _DECIMAL.fullmatch(value) else np.nan


def _term(key: str, value: str) -> str:
    return f"{chr(len(key))}{key}{value}"


class MetadataIndexWriter:
    """Takes the metadata of all documents in their order, then writes four files."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._count = 0

    def add(self, metadata: Mapping[str, str]) -> None:
        for key, value in metadata.items():
            self._rows.setdefault(_term(key, value), array("i")).append(self._count)
        self._count += 1

    def write(self, writer: Writer) -> None:
        found = list(self._rows)
        terms = [found[at] for at in sorted_positions(found)]
        lengths = (len(self._rows[term]) for term in terms)
        writer.strings("terms", with_pauses(terms))
        writer.array("terms.numbers.npy", np.array([_number(t[1 + ord(t[0]) :]) for t in terms], np.float64))
        writer.array("postings.ends.npy", np.cumsum(np.fromiter(lengths, np.int64, len(terms))))
        rows = [np.frombuffer(self._rows[term], np.int32) for term in terms]
        writer.array("postings.npy", np.concatenate([_NONE, *rows]))


def read_metadata_index(folder: Path) -> MetadataIndex:
    """What MetadataIndexWriter wrote, memory-mapped."""
    return MetadataIndex(
        read_strings(folder, "terms"),
        read_array(folder / "terms.numbers.npy"),
        read_array(folder / "postings.ends.npy"),
        read_array(folder / "postings.npy"),
    )
