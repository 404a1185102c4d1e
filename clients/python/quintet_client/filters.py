"""Conditions on the metadata of documents, in plain Python.

    where = {"kind": "faq", "lang": ["en", "fr"], "year": (1990, 2000), "date": ("2024-01-01", None)}

A text or a number must be equal. A list matches if one of its texts is equal. A pair is a range of numbers or texts
that includes both ends; None leaves an end open. All conditions must hold.
"""

from collections.abc import Mapping
from typing import cast

from quintet.v1 import rag_pb2

from quintet_client.errors import InvalidRequest, Violation, invalid
from quintet_client.messages import make

Range = tuple[float | None, float | None] | tuple[str | None, str | None]
Condition = str | float | list[str] | set[str] | frozenset[str] | Range
Where = Mapping[str, Condition]
_KINDS = "a text, a number, a list of texts, or a pair of numbers or texts"


def filters(where: Where | None) -> list[rag_pb2.MetadataFilter]:
    """The filters of a request. Raises InvalidRequest for a value that is not a condition."""
    found = []
    for key, condition in (where or {}).items():
        try:
            found.append(_filter(key, condition))
        except InvalidRequest as error:
            requirement = error.violations[0].description
            raise invalid([Violation(f'where["{key}"]', requirement)]) from None
    return found


def _filter(key: str, condition: Condition) -> rag_pb2.MetadataFilter:
    match condition:
        case str():
            return make(rag_pb2.MetadataFilter, key=key, equals=condition)
        case int() | float() if not isinstance(condition, bool):
            return _filter(key, (condition, condition))
        case list() | set() | frozenset() if all(isinstance(value, str) for value in condition):
            return make(rag_pb2.MetadataFilter, key=key, any_of=make(rag_pb2.TextSet, values=sorted(condition)))
        case (low, high) if isinstance(condition, tuple) and _are(str, low, high):
            texts = make(rag_pb2.TextRange, at_least=cast("str | None", low), at_most=cast("str | None", high))
            return make(rag_pb2.MetadataFilter, key=key, text_range=texts)
        case (low, high) if isinstance(condition, tuple) and _are((int, float), low, high):
            numbers = make(rag_pb2.NumberRange, at_least=cast("float | None", low), at_most=cast("float | None", high))
            return make(rag_pb2.MetadataFilter, key=key, number_range=numbers)
    raise invalid([Violation("", f"must be {_KINDS}")])


def _are(kind: type | tuple[type, ...], *ends: object) -> bool:
    """Whether at least one end is given, and all given ends are of this kind."""
    given = [end for end in ends if end is not None]
    return bool(given) and all(isinstance(end, kind) and not isinstance(end, bool) for end in given)
