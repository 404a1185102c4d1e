"""Messages made of plain Python. A value that its field cannot hold raises InvalidRequest with the field's path."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from quintet_client.errors import Violation, invalid

_HALF = re.compile("[\ud800-\udfff]")
_KINDS = {
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number, 0 or more",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number, 0 or more",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "a text",
}
M = TypeVar("M", bound=Message)
# What protobuf raises for a value of another type, out of range, or with half of a surrogate pair in a text.
_REFUSED = (TypeError, ValueError, OverflowError, json_format.ParseError)


def make(kind: type[M], /, **fields: Any) -> M:
    """The message with these fields; None leaves a field unset."""
    try:
        return kind(**fields)
    except _REFUSED:
        if violations := [*_violations(kind, fields)]:
            raise invalid(violations) from None
        raise


def from_mapping(kind: type[M], given: object, path: str, required: Iterable[str]) -> M:
    """The message of a caller's mapping. Fields that are missing or unknown are violations, too."""
    if not isinstance(given, Mapping):
        raise invalid([Violation(path, "must be an object with the fields of " + kind.DESCRIPTOR.name)])
    fields = dict(kind.DESCRIPTOR.fields_by_name)  # protobuf's mapping fails for a lone surrogate
    present = {name: value for name, value in given.items() if value is not None}
    missing = set(required).difference(present)
    violations = [Violation(f"{path}.{name}", "is missing") for name in fields if name in missing]
    message = kind()
    for name, value in present.items():
        if name not in fields:
            violations.append(Violation(f"{path}.{name}", f"is not a field{_suggestion(name, fields)}"))
            continue
        try:
            json_format.ParseDict({name: value}, message)
        except _REFUSED:
            violations.append(Violation(f"{path}.{name}", _requirement(fields[name], value)))
    if violations:
        raise invalid(violations)
    return message


def _violations(kind: type[Message], fields: Mapping[str, object]) -> Iterator[Violation]:
    known = dict(kind.DESCRIPTOR.fields_by_name)
    for name, value in fields.items():
        if name not in known:
            yield Violation(name, f"is not a field{_suggestion(name, known)}")
            continue
        parts: list[tuple[str, object]] = [(name, value)]
        if isinstance(value, list):
            parts = [(f"{name}[{index}]", [item]) for index, item in enumerate(value)]
        for path, one in parts:
            try:
                kind(**{name: one})
            except _REFUSED:
                yield Violation(path, _requirement(known[name], one))


def _suggestion(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _requirement(field: Any, value: object) -> str:
    """What a field requires of a value that it refused."""
    if _has_half(value):
        return "must be valid Unicode; it has half of a surrogate pair"
    return f"must be {_KINDS.get(field.cpp_type, 'an object of texts')}"


def _has_half(value: object) -> bool:
    if isinstance(value, str):
        return bool(_HALF.search(value))
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value
    return isinstance(parts, list) and any(map(_has_half, parts))
