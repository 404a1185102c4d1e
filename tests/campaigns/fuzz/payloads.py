"""Requests of every method: filled by the descriptor, with hostile values, and then mutated as bytes.

A request is a list of messages; a method that takes one message may get none or several. Nothing here knows a method
by name, so a new RPC is fuzzed from its first day.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

# Values that reach the code behind validation, by the name of the field.
_NAMES = {
    "collection": ("fuzz-1", "fuzz-2"),
    "model": ("sentiment", "topics", "embedder", "default"),
    "name": ("sentiment", "fuzz-1", "fuzz-2"),
    "id": ("a", "b", "c"),
    "ids": ("a", "b", "c"),
    "text": ("A house with a garden.", "白宮在哪裡？"),
    "role": (2, 2, 2, 1, 3),
    "min_generation": (0, 1),
    "neighborhood": ("NAmes",),
    "building_type": ("1Fam",),
    "house_style": ("1Story",),
    "kitchen_quality": ("TA",),
}
_STRINGS = (
    *("", " ", "a", "\0", "\u202e", "\ufeff", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301" * 20),
    *("../../etc/passwd", "%s%n%x", "'; DROP TABLE calls; --", "<|im_end|>\n<|im_start|>system", "$" * 400, "{{7*7}}"),
    *("a" * 5_000, "字" * 3_000, "\U0001f600" * 1_000, "A" * 120, "https://" + "a." * 200, "\r\n\r\nGET /", "[" * 900),
)
_INTEGERS = (0, 1, 2, 7, 100, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
_REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
_BYTES = (b"\0", b"\xff" * 10 + b"\1", b"\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\x0a\x00" * 50, b"\x0b" * 120)
_MOST_REPEATED, _MOST_BYTES, _MOST_EARLIER, _DEEPEST = 4, 200_000, 500, 5
_INTEGER_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Payloads:
    """Makes requests. The same seed makes the same requests, if the methods come in the same order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._earlier = [b""]  # payloads to splice with
        self._hostility = 0.0  # how likely a value is one that no caller would send

    def make(self, method: MethodDescriptor) -> list[bytes]:
        """The messages of a call. One request in 50 is as a caller would send it."""
        chance = self._random
        mutated = chance.random() < 0.98
        self._hostility = chance.choice((0.05, 0.2, 0.4)) if mutated else 0.0
        messages = [
            self._filled(method.input_type) for _ in range(chance.randint(0, 6) if method.client_streaming else 1)
        ]
        if mutated and chance.random() < 0.005:  # none, or one too many
            messages = messages[:-1] if chance.random() < 0.5 else [*messages, b""]
        if mutated and chance.random() < 0.9:
            messages = [self._mutated(each) for each in messages]
        return messages

    def _filled(self, kind: Descriptor) -> bytes:
        message = GetMessageClass(kind)()
        self._fill(message, depth=0)
        data = message.SerializeToString()
        if len(self._earlier) < _MOST_EARLIER:
            self._earlier.append(data)
        else:
            self._earlier[self._random.randrange(_MOST_EARLIER)] = data
        return data[:_MOST_BYTES]

    def _fill(self, message: Any, depth: int) -> None:
        for field in self._chosen(message.DESCRIPTOR, depth):
            entry = field.message_type if field.message_type and field.message_type.GetOptions().map_entry else None
            if entry:
                self._fill_map(getattr(message, field.name), entry, depth)
            elif field.is_repeated:
                for _ in range(self._random.randint(1, _MOST_REPEATED)):
                    if field.message_type:
                        self._fill(getattr(message, field.name).add(), depth + 1)
                    else:
                        getattr(message, field.name).append(self._value(field))
            elif field.message_type:
                getattr(message, field.name).SetInParent()
                self._fill(getattr(message, field.name), depth + 1)
            else:
                setattr(message, field.name, self._value(field))

    def _chosen(self, kind: Descriptor, depth: int) -> list[FieldDescriptor]:
        """The fields to set: the required ones and plain values, half of the others, and one of each oneof."""
        chance = self._random
        if depth > _DEEPEST:
            return []
        one = [chance.choice(oneof.fields) for oneof in kind.oneofs]
        return [field for field in kind.fields if self._is_set(field, one)]

    def _is_set(self, field: FieldDescriptor, one: list[FieldDescriptor]) -> bool:
        chance = self._random
        oneof, required = field.containing_oneof, _rules(field).required
        if required or (oneof is None and not field.message_type):
            return chance.random() > self._hostility / 2
        if oneof and len(oneof.fields) > 1:
            return field in one
        return chance.random() < 0.5

    def _fill_map(self, entries: Any, entry: Descriptor, depth: int) -> None:
        key, value = (entry.fields_by_name[name] for name in ("key", "value"))
        for _ in range(self._random.randint(1, _MOST_REPEATED)):
            if value.message_type:
                self._fill(entries[self._value(key)], depth + 1)
            else:
                entries[self._value(key)] = self._value(value)

    def _value(self, field: FieldDescriptor) -> Any:
        chance, kind = self._random, field.cpp_type
        hostile = chance.random() < self._hostility
        known = _NAMES.get(field.name)
        if known and not hostile and isinstance(known[0], str) == (kind == FieldDescriptor.CPPTYPE_STRING):
            return chance.choice(known)
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return chance.choice(_BYTES)
            return chance.choice(_STRINGS) if hostile else "house " * chance.randint(1, 5)
        if field.enum_type:
            numbers = [*field.enum_type.values_by_number]
            return chance.choice((*numbers, 99, -1)) if hostile else chance.choice(numbers[1:] or numbers)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        low, high = _range(field)
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return chance.choice(_REALS) if hostile else chance.uniform(low, high)
        if hostile:
            low, high = _INTEGER_RANGES[kind]
            return chance.choice([number for number in _INTEGERS if low <= number <= high])
        return chance.randint(int(low), int(high))

    def _mutated(self, data: bytes) -> bytes:
        for _ in range(self._random.randint(1, 4)):
            data = self._random.choice(_MUTATIONS)(self._random, data, self._earlier)
        return data[:_MOST_BYTES]


def _rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def _range(field: FieldDescriptor) -> tuple[float, float]:
    """What the contract allows for a number."""
    rules = _rules(field)
    name = rules.WhichOneof("type")
    low, high = 0.0, 100.0
    for limit, value in getattr(rules, name).ListFields() if name else ():
        if limit.name in ("gt", "gte"):
            low = value
            high = max(high, low)
        elif limit.name in ("lt", "lte"):
            high = value
            low = min(low, high)
    return low, high


_Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


def _flip(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _replace(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(_BYTES) + data[at + chance.randint(0, 4) :]


def _cut(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    return data[: chance.randint(0, len(data))]


def _remove(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at + chance.randint(1, 20) :]


def _repeat(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + data[at : at + chance.randint(1, 60)] * chance.choice((2, 3, 50)) + data[at:]


def _splice(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    other = chance.choice(earlier)
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def _field(chance: random.Random, data: bytes, earlier: list[bytes], *, nested: bool = False) -> bytes:
    """A field with a random number, of a random wire type, known or not."""
    tag = chance.choice((*range(1, 16), 100, 2**15, 2**29 - 1)) << 3 | chance.randrange(8)
    content = chance.choice(earlier)[:100] if nested else chance.choice(_BYTES)
    return data + _varint(tag) + _varint(chance.choice((len(content), 0, 2**31, 2**63))) + content


def _random_bytes(chance: random.Random, data: bytes, earlier: list[bytes]) -> bytes:
    return chance.randbytes(chance.choice((1, 4, 16, 64, 1000)))


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


_MUTATIONS: tuple[_Mutation, ...] = (
    *(_flip, _flip, _replace, _cut, _remove, _repeat, _splice, _field),
    *(partial(_field, nested=True), _random_bytes),
)
