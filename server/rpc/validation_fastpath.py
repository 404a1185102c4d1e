"""A quick look at requests: whether they are plainly within their limits, so that protovalidate need not be asked.

Protovalidate decides what is wrong, and finds the words for it. Most requests are right, and for the rules that the
contract mostly uses a few comparisons say so in a fraction of its time (PERFORMANCE.md). Whatever is in doubt goes on
to protovalidate, so this may know as few rules as it likes, but must know them well.
"""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

Check = Callable[[Any], bool]  # of a message, or of a field's value
_NUMBERS = {"double", "float", "int32", "int64", "uint32", "uint64"}
_LARGEST = 1.7976931348623157e308  # what is finite is not above
_VISIBLE = r"[^\s\p{Z}\p{C}]"


def plainly_valid(message_type: Descriptor) -> Check | None:
    """What returns True only for messages of this type that break no rule; None if nothing can be said of it."""
    options = message_type.GetOptions()
    if options.HasExtension(validate_pb2.message) or any(
        oneof.GetOptions().HasExtension(validate_pb2.oneof) for oneof in message_type.oneofs
    ):
        return None
    required: list[str] = []
    ranges: dict[str, tuple[float, float]] = {}  # those of numbers that are always there; houses have many
    others: list[Check] = []
    for field in message_type.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        kind = rules.WhichOneof("type")
        if not _names(rules) <= {"required", kind} or (rules.required and not field.has_presence):
            return None
        if rules.required:
            required.append(field.name)
        may_be_unset = field.has_presence and not rules.required
        bounds = _bounds(getattr(rules, kind)) if kind in _NUMBERS else None
        if bounds and not may_be_unset:
            ranges[field.name] = bounds
            continue
        allows = partial(_between, *bounds) if bounds else _of_values(field, rules, kind)
        if allows is None and not may_be_unset:
            return None
        if allows is not _anything:
            others.append(_of_field(field.name, allows, may_be_unset=may_be_unset))
    return _of_message(tuple(required), ranges, tuple(others))


def _of_message(required: tuple[str, ...], ranges: dict[str, tuple[float, float]], others: tuple[Check, ...]) -> Check:
    # attrgetter returns a tuple for two names at least, and the first one does no harm twice.
    numbers = attrgetter(*ranges, next(iter(ranges))) if ranges else None
    bounds = tuple(ranges.values())

    def check(message: Message) -> bool:
        for name in required:
            if not message.HasField(name):
                return False
        if numbers is not None:
            for value, (low, high) in zip(numbers(message), bounds, strict=False):
                if not low <= value <= high:  # so is NaN
                    return False
        for allows in others:  # noqa: SIM110  # a generator would cost as much as the checks
            if not allows(message):
                return False
        return True

    return check


def _of_field(name: str, allows: Check | None, *, may_be_unset: bool) -> Check:
    """The check of a message, made from that of one field's value; None allows no value at all."""
    if not may_be_unset:
        return lambda message: allows is not None and allows(getattr(message, name))
    return lambda message: not message.HasField(name) or (allows is not None and allows(getattr(message, name)))


def _of_values(field: FieldDescriptor, rules: Any, kind: str | None) -> Check | None:
    """What a field's values are asked for; None if that is not known here."""
    if field.is_repeated:
        return _of_list(field, rules.repeated) if kind in (None, "repeated") else None
    if kind == "string":
        return _of_text(rules.string)
    return _anything if kind is None and field.message_type is None else None


def _of_list(field: FieldDescriptor, rules: Any) -> Check | None:
    if not _names(rules) <= {"min_items", "max_items", "items"}:
        return None
    least, most = rules.min_items, rules.max_items if rules.HasField("max_items") else _LARGEST
    each: Check | None = _anything
    if field.message_type is not None:
        is_map = field.message_type.GetOptions().map_entry
        each = None if is_map or rules.HasField("items") else plainly_valid(field.message_type)
    elif rules.HasField("items"):
        each = _of_text(rules.items.string) if _names(rules.items) == {"string"} else None
    if each is None:
        return None if least else lambda values: not values
    allows = each
    return lambda values: least <= len(values) <= most and all(map(allows, values))


def _of_text(rules: Any) -> Check | None:
    if not _names(rules) <= {"min_len", "max_len", "pattern"}:
        return None
    least, most = rules.min_len, rules.max_len if rules.HasField("max_len") else _LARGEST
    if not rules.HasField("pattern"):
        return lambda text: least <= len(text) <= most
    if rules.pattern == _VISIBLE:  # most texts begin with something visible
        return lambda text: max(1, least) <= len(text) <= most and "!" <= text[0] <= "~"
    return None


def _bounds(rules: Any) -> tuple[float, float] | None:
    if not _names(rules) <= {"gte", "lte", "finite"}:
        return None
    return rules.gte if rules.HasField("gte") else -_LARGEST, rules.lte if rules.HasField("lte") else _LARGEST


def _between(low: float, high: float, value: float) -> bool:
    return low <= value <= high


def _anything(_: object) -> bool:
    return True


def _names(rules: Message) -> set[str]:
    return {rule.name for rule, _ in rules.ListFields()}
