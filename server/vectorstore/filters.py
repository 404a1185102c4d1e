"""Which documents fulfil the filters of a query: rows of a generation, and of the log after it."""

from collections.abc import Iterable
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import MetadataFilter, NumberRange, TextRange, ValueIn
from server.vectorstore.metadata_index import MetadataIndex, in_range, number_of
from server.vectorstore.snapshot import Snapshot


def base_documents(terms: MetadataIndex, filters: Iterable[MetadataFilter]) -> NDArray[np.int32]:
    """Rows of the generation's documents that fulfil all filters, ascending; some may be gone by now."""
    return _in_all(_of_terms(terms, each) for each in filters)


def log_documents(snapshot: Snapshot, filters: Iterable[MetadataFilter]) -> NDArray[np.int32]:
    """The same of the documents of the log. The log is short, so looking at each of its values takes no time."""
    rows = _in_all(_of_log(snapshot, each) for each in filters)
    return rows[rows < len(snapshot.died)]


def _in_all(found: Iterable[NDArray[np.int32]]) -> NDArray[np.int32]:
    return reduce(np.intersect1d, found)


def _of_terms(terms: MetadataIndex, wanted: MetadataFilter) -> NDArray[np.int32]:
    match wanted:
        case ValueIn(key, values):
            return np.unique(terms.with_value(key, values))
        case TextRange(key, at_least, at_most, less_than):
            return np.unique(terms.in_text_range(key, at_least, at_most, less_than))
        case NumberRange(key, low, high, beyond):
            return np.unique(terms.in_number_range(key, low, high, beyond))


def _of_log(snapshot: Snapshot, wanted: MetadataFilter) -> NDArray[np.int32]:
    # Copied at once: the writer may add a value, or a row to one, meanwhile.
    values = list(snapshot.values.get(wanted.key, {}).items())
    rows = [list(rows) for value, rows in values if _fulfils(value, wanted)]
    return np.unique(np.concatenate([np.empty(0, np.int32), *(np.array(each, np.int32) for each in rows)]))


def _fulfils(value: str, wanted: MetadataFilter) -> bool:
    match wanted:
        case ValueIn(_, values):
            return value in values
        case TextRange(_, at_least, at_most, less_than):
            return (
                (at_least is None or value >= at_least)
                and (at_most is None or value <= at_most)
                and (less_than is None or value < less_than)
            )
        case NumberRange(_, low, high, beyond):
            return bool(in_range(np.array([number_of(value)]), low, high, beyond)[0])
