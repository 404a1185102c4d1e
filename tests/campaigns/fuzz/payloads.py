"""Requests of every method: filled by the descriptor, with hostile values, and then mutated as bytes.

A request is a list of messages; a method that takes one message may get none or several. Nothing here knows a method
by name, so a new RPC is fuzzed from its first day.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

# Values that reach the code behind validation, by the name of the field.
_NAMES = {
    "collection": ("fuzz-1", "fuzz-2", "wikipedia"),
    "model": ("sentiment", "topics", "embedder", "default"),
    "name": ("sentiment", "fuzz-1", "fuzz-2", "current"),
    "id": ("a", "b", "c"),
    "ids": ("a", "b", "c"),
    "text": ("a house with a garden", "白宮在哪裡？"),
    "role": (1, 2, 3),
}
_STRINGS = (
    *("", " ", "a", "\0", "\u202e", "\ufeff", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301" * 20),
    *("../../etc/passwd", "%s%n%x", "'; DROP TABLE calls; --", "<|im_end|>\n<|im_start|>system", "$" * 400, "{{7*7}}"),
    *("a" * 5_000, "字" * 3_000, "\U0001f600" * 1_000, "A" * 120, "https://" + "a." * 200, "\r\n\r\nGET /", "[" * 900),
)
_INTEGERS = (0, 1, 2, 7, 100, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
_REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
_BYTES = (b"\0", b"\xff" * 10 + b"\1", b"\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\x0a\x00" * 50, b"\x0b" * 120)
_MOST_REPEATED, _MOST_BYTES = 4, 200_000
_INTEGER_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
}


class Payloads:
    """Makes requests. The same seed makes the same requests, if the methods come in the same order."""

    def __init__(self, seed: int, *, names: dict[str, tuple[Any, ...]] | None = None) -> None:
        self._random = random.Random(seed)
        self._names = _NAMES | (names or {})
        self._earlier = [b""]  # payloads to splice with

    def make(self, method: MethodDescriptor) -> list[bytes]:
        """The messages of a call. About one request in ten is left as it was filled."""
        chance = self._random
        count = chance.choice((0, 1, 2, 3)) if method.client_streaming else 1
        messages = [self._filled(method.input_type) for _ in range(count)]
        if chance.random() < 0.005:  # none, or one too many
            messages = messages[:-1] if chance.random() < 0.5 else [*messages, b""]
        if chance.random() < 0.9:
            messages = [self._mutated(each) for each in messages]
        return messages

    def _filled(self, kind: Descriptor) -> bytes:
        message = GetMessageClass(kind)()
        self._fill(message, depth=0)
        data = message.SerializeToString()
        if len(self._earlier) < 500:
            self._earlier.append(data)
        else:
            self._earlier[self._random.randrange(500)] = data
        return data[:_MOST_BYTES]

    def _fill(self, message: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.35 or depth > 5:
                continue
            if field.message_type and field.message_type.GetOptions().map_entry:
                self._fill_map(getattr(message, field.name), field.message_type, depth)
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

    def _fill_map(self, entries: Any, entry: Descriptor, depth: int) -> None:
        key, value = (entry.fields_by_name[name] for name in ("key", "value"))
        for _ in range(self._random.randint(1, _MOST_REPEATED)):
            if value.message_type:
                self._fill(entries[self._value(key)], depth + 1)
            else:
                entries[self._value(key)] = self._value(value)

    def _value(self, field: FieldDescriptor) -> Any:
        chance, kind = self._random, field.cpp_type
        known = self._names.get(field.name)
        if known and chance.random() < 0.8 and isinstance(known[0], str) == (kind == FieldDescriptor.CPPTYPE_STRING):
            return chance.choice(known)
        if kind == FieldDescriptor.CPPTYPE_STRING:
            text = chance.choice(_STRINGS) if chance.random() < 0.4 else "house " * chance.randint(1, 8)
            return chance.choice(_BYTES) if field.type == FieldDescriptor.TYPE_BYTES else text
        if kind in _INTEGER_RANGES:
            low, high = _INTEGER_RANGES[kind]
            number = chance.choice(_INTEGERS) if chance.random() < 0.5 else chance.randint(0, 300)
            return number if low <= number < high else 1
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return chance.choice(_REALS) if chance.random() < 0.4 else chance.uniform(0, 3000)
        if field.enum_type:
            return chance.choice((*field.enum_type.values_by_number, 99, -1))
        return chance.random() < 0.5

    def _mutated(self, data: bytes) -> bytes:
        for _ in range(self._random.randint(1, 3)):
            data = self._random.choice(_MUTATIONS)(self._random, data, self._earlier)
        return data[:_MOST_BYTES]


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
