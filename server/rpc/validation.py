"""Requests are parsed and checked against the limits that stand beside the fields, before anything else sees them."""

from functools import cache
from typing import Any

import protovalidate
from google.protobuf.message import DecodeError, Message

from server.domain.errors import InvalidRequest, MessageTooLarge, Violation
from server.rpc.validation_fastpath import Check, plainly_valid

# What a pattern asks for, for people. The contract uses these two.
_PATTERNS = {
    r"[^\s\p{Z}\p{C}]": "must contain something visible",
    "^[a-z0-9][a-z0-9_-]{0,62}$": 'must be lower-case letters, digits, "_" or "-", and begin with a letter or digit',
}
# What protovalidate says of the commonest mistakes, and what people say.
_WORDS = {
    "must be at least 1 characters": "must not be empty",
    "must contain at least 1 item(s)": "must not be empty",
    "must not be in list [0]": "must be given",
}
_validator = protovalidate.Validator()


def parse(message_type: type[Message], payload: bytes, max_bytes: int) -> Message:
    """Decode and validate one request.

    The transport hands over bytes because its own decoder answers INTERNAL to a malformed message. Raises
    MessageTooLarge, or InvalidRequest with the path of every field that breaks a limit.
    """
    if len(payload) > max_bytes:
        raise MessageTooLarge(f"the request has {len(payload)} bytes; at most {max_bytes} are read")
    try:
        request = message_type.FromString(payload)
    except DecodeError as error:
        what = "is not valid UTF-8" if "UTF-8" in str(error) else "cannot be decoded"
        raise InvalidRequest([Violation("", f"the {message_type.DESCRIPTOR.name} {what}")]) from None
    check = _check(message_type.DESCRIPTOR)
    if check is not None and check(request):
        return request
    if found := _validator.collect_violations(request):
        raise InvalidRequest(_one_a_field(found))
    return request


@cache
def _check(kind: Any) -> Check | None:
    return plainly_valid(kind)


def _one_a_field(found: list[Any]) -> list[Violation]:
    """The first violation of every field: an empty text need not also be told that it is blank."""
    violations: dict[str, str] = {}
    for violation in found:
        path, message = _path(violation.proto.field), violation.proto.message
        violations.setdefault(path, _PATTERNS.get(str(violation.rule_value)) or _WORDS.get(message, message))
    return [Violation(path, text) for path, text in violations.items()]


def _path(field: Any) -> str:
    """A path such as "houses[2].neighborhood" or 'documents[0].metadata["source"]'."""
    parts: list[str] = []
    for element in field.elements if field else ():
        subscript = element.subscript
        if subscript is None:
            parts.append(element.field_name)
        elif isinstance(subscript.value, str):
            parts.append(f'{element.field_name}["{subscript.value}"]')
        else:
            parts.append(f"{element.field_name}[{subscript.value}]")
    return ".".join(parts)
