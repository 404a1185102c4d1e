"""Parses requests and checks them against the limits in the contract, the `buf.validate` options of the fields."""

from collections.abc import Callable
from typing import Any

import protovalidate
from google.protobuf.message import DecodeError, Message

from server.domain.errors import InvalidRequest, MessageTooLarge, Violation
from server.rpc.validation_fastpath import compile_check

# In words, the patterns that the contract uses.
_PATTERNS = {
    r"[^\s\p{Z}\p{C}]": "must contain something visible",
    "^[a-z0-9][a-z0-9_-]{0,62}$": 'must be lower-case letters, digits, "_" or "-", and begin with a letter or digit',
}
# protovalidate's words for the most common violations, and plainer ones.
_WORDS = {
    "must be at least 1 characters": "must not be empty",
    "must contain at least 1 item(s)": "must not be empty",
    "must not be in list [0]": "must be given",
}
_validator = protovalidate.Validator()


def parser(message_type: type[Message], max_bytes: int) -> Callable[[bytes], Message]:
    """What decodes and validates one request of this type.

    gRPC passes bytes, because its own decoder answers INTERNAL to a malformed message. The parser raises
    MessageTooLarge, or InvalidRequest with the path of every field that breaks a limit.
    """
    name = message_type.DESCRIPTOR.name
    is_valid = compile_check(message_type.DESCRIPTOR)

    def parse(payload: bytes) -> Message:
        if len(payload) > max_bytes:
            raise MessageTooLarge(f"the request has {len(payload)} bytes; the limit is {max_bytes}")
        try:
            request = message_type.FromString(payload)
        except DecodeError as error:
            what = "is not valid UTF-8" if "UTF-8" in str(error) else "cannot be decoded"
            raise InvalidRequest([Violation("", f"the {name} {what}")]) from None
        if is_valid is not None and is_valid(request):
            return request
        if found := _validator.collect_violations(request):
            raise InvalidRequest(_first_of_each_field(found))
        return request

    return parse


def _first_of_each_field(found: list[Any]) -> list[Violation]:
    """The first violation of every field: an empty text is not reported as blank, too."""
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
