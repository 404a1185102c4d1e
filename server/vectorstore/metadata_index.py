"""An inverted index of metadata: which documents have a value. And which documents fulfil the filters of a query.

A term is a key with a value, written so that the terms of a key lie together, sorted by value: the length of the key
as one character, the key, the value. The documents of a range of values are then one range of `rows`.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import MetadataFilter, NumberRange, TextRange, ValueIn
from server.vectorstore.files import Strings, Writer, read_array, read_strings, sorted_positions, with_pauses

Rows = NDArray[np.int32]
_DECIMAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class MetadataIndex:
    """`rows[ends[i - 1] : ends[i]]` are the documents of sorted term i, `numbers[i]` its value or NaN."""

    terms: Sequence[str] | Strings
    numbers: NDArray[np.float64]
    ends: NDArray[np.int64]
    rows: Rows

    def matching(self, filters: Iterable[MetadataFilter]) -> Rows:
        """Rows of the documents that fulfil all filters, at least one, ascending."""
        return reduce(np.intersect1d, (np.unique(self._matching(each)) for each in filters))

    def _matching(self, wanted: MetadataFilter) -> Rows:
        match wanted:
            case ValueIn(key, values):
                terms = [_term(key, value) for value in set(values)]
                found = (self._rows(bisect_left(self.terms, each), bisect_right(self.terms, each)) for each in terms)
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
                numbers = self.numbers[low:high]
                inside: NDArray[np.bool_] = ~np.isnan(numbers)
                if wanted.at_least is not None:
                    inside &= numbers >= wanted.at_least
                if wanted.at_most is not None:
                    inside &= numbers <= wanted.at_most
                if wanted.less_than is not None:
                    inside &= numbers < wanted.less_than
                starts = np.concatenate([np.zeros(1, np.int64), self.ends])[low : high + 1]
                return self._rows(low, high)[np.repeat(inside, np.diff(starts))]

    def _terms_of(self, key: str) -> tuple[int, int]:
        """The range of the key's terms."""
        prefix = _term(key, "")
        # The first text beyond all that begin with `prefix`; its first character, a length, is small.
        shortened = prefix.rstrip("\U0010ffff")
        beyond = shortened[:-1] + chr(ord(shortened[-1]) + 1)
        return bisect_left(self.terms, prefix), bisect_left(self.terms, beyond)

    def _rows(self, low: int, high: int) -> Rows:
        """Documents of the terms from `low` to before `high`."""
        if low == high:
            return _NONE
        return self.rows[int(self.ends[low - 1]) if low else 0 : int(self.ends[high - 1])]


def matching_rows(values: Mapping[str, Mapping[str, list[int]]], filters: Sequence[MetadataFilter]) -> Rows:
    """The same for documents in memory, given as key to value to rows. Another thread may be adding to `values`."""
    rows: dict[str, Rows] = {}
    for each in filters:
        known = values.get(each.key, {})
        wanted = each.values if isinstance(each, ValueIn) else list(known)  # copied before the writer adds to it
        rows |= {_term(each.key, value): np.array(list(known[value]), np.int32) for value in wanted if value in known}
    return _index(sorted(rows), rows).matching(filters)


def _index(terms: list[str], rows: Mapping[str, Rows]) -> MetadataIndex:
    """An index in memory of sorted terms and the documents that have them."""
    ends = np.array([len(rows[term]) for term in terms], np.int64).cumsum()
    numbers = np.array([_number(term[1 + ord(term[0]) :]) for term in terms], np.float64)
    return MetadataIndex(terms, numbers, ends, np.concatenate([_NONE, *(rows[term] for term in terms)]))


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
        rows = {found[at]: np.frombuffer(self._rows[found[at]], np.int32) for at in sorted_positions(found)}
        index = _index(list(rows), rows)
        writer.strings("terms", with_pauses(rows))
        writer.array("terms.numbers.npy", index.numbers)
        writer.array("postings.ends.npy", index.ends)
        writer.array("postings.npy", index.rows)


def read_metadata_index(folder: Path, documents: int) -> MetadataIndex:
    """What MetadataIndexWriter wrote for so many documents, memory-mapped. Raises ValueError for anything else."""
    index = MetadataIndex(
        read_strings(folder, "terms"),
        read_array(folder / "terms.numbers.npy"),
        read_array(folder / "postings.ends.npy"),
        read_array(folder / "postings.npy"),
    )
    last = int(index.ends[-1]) if len(index.ends) else 0
    if not len(index.terms) == len(index.numbers) == len(index.ends) or last != len(index.rows):
        raise ValueError("the metadata do not fit their index")
    if len(index.rows) and not 0 <= index.rows.min() <= index.rows.max() < documents:
        raise ValueError("the metadata do not fit the documents")
    return index
