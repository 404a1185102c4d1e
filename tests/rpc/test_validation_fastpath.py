"""The fast check never accepts what protovalidate refuses."""

import importlib
import math
import pkgutil
from typing import Any

import protovalidate
import pytest
import quintet.v1
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rpc.validation_fastpath import Check, compile_check
from tests.bench.requests import CLASSIFY, PRICE, RETRIEVE

_validator = protovalidate.Validator()


def requests() -> list[Descriptor]:
    names = [f"quintet.v1.{found.name}" for found in pkgutil.iter_modules(quintet.v1.__path__)]
    files = [importlib.import_module(name).DESCRIPTOR for name in names if name.endswith("_pb2")]
    methods = [each for file in files for service in file.services_by_name.values() for each in service.methods]
    return [method.input_type for method in methods]


CHECKS: list[tuple[Descriptor, Check]] = [(each, check) for each in requests() if (check := compile_check(each))]
# Values at the ends of the contract's limits and beyond, and characters that look visible and are not.
NUMBERS = [0, 1, 2, 5, 10, 11, 20, 21, 30, 31, 99, 100, 101, 500, 1000, 1799, 1800, 2100, 2101, 20000, 1_000_000]
FLOATS: list[float] = [*NUMBERS, -1.0, 0.5, 99.999, 1e7, math.inf, -math.inf, math.nan]
TEXTS = ["", " ", "\u200b", "\u00a0", "\ue000", "a", "é", "-", "a b", " a", "A", "a" * 63, "a" * 129, "é" * 501, "\n"]


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.sampled_from(TEXTS)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from(FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return st.sampled_from(NUMBERS)


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor) -> Message:
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values(field), max_size=3)))
        elif field.message_type is not None:
            if draw(st.booleans()):
                getattr(message, field.name).CopyFrom(draw(values(field)))
        elif draw(st.integers(0, 3)):
            setattr(message, field.name, draw(values(field)))
    return message


@pytest.mark.parametrize(("kind", "check"), CHECKS, ids=[kind.name for kind, _ in CHECKS])
def test_what_the_fast_check_accepts_breaks_no_rule(kind: Descriptor, check: Check) -> None:
    @settings(max_examples=100, deadline=None)
    @given(messages(kind))
    def never_wrong(message: Message) -> None:
        if check(message):
            assert not _validator.collect_violations(message)

    never_wrong()


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_one_value_of_a_house_may_be_anything(data: st.DataObject) -> None:
    request = type(PRICE)()
    request.CopyFrom(PRICE)
    house: Any = request.houses[0]
    field = data.draw(st.sampled_from(list(house.DESCRIPTOR.fields)))
    house.ClearField(field.name)
    if data.draw(st.integers(0, 5)):
        setattr(house, field.name, data.draw(values(field)))
    check = compile_check(request.DESCRIPTOR)
    assert check is not None
    assert check(request) == (not _validator.collect_violations(request))  # houses have no rule that is not known


@pytest.mark.parametrize("request_", [PRICE, CLASSIFY, RETRIEVE], ids=["house", "text", "query"])
def test_the_usual_requests_are_compile_check(request_: Any) -> None:
    check = compile_check(request_.DESCRIPTOR)
    assert check is not None
    assert check(request_)


@pytest.mark.parametrize("count", [0, 1, 64, 65, 256, 257])
def test_lists_are_counted(count: int) -> None:
    for request in (type(PRICE)(houses=[PRICE.houses[0]] * count), type(CLASSIFY)(texts=["a"] * count)):
        check = compile_check(request.DESCRIPTOR)
        assert check is not None
        assert check(request) == (not _validator.collect_violations(request))
