"""Every request field that can grow has an upper limit beside it, and every method says how it fails."""

import re
from collections.abc import Iterator

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from quintet.v1 import errors_pb2, rag_pb2

from server.domain import errors
from tests.services import PROTOS, SERVICES


def methods() -> list[MethodDescriptor]:
    return [method for service in SERVICES.values() for method in service.methods]


def request_fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """The fields of a request and of all messages in it."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None and not field.message_type.full_name.startswith("google."):
            yield from request_fields(field.message_type, seen)


def all_request_fields() -> list[FieldDescriptor]:
    seen: set[str] = set()
    return [field for method in methods() for field in request_fields(method.input_type, seen)]


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def upper_limits_missing(field: FieldDescriptor) -> list[str]:
    """What has no upper limit in this field."""
    rule = rules(field)
    if field.containing_type is not None and field.containing_type.GetOptions().map_entry:
        return []  # judged with the map itself
    if field.message_type is not None and is_map(field):
        value = field.message_type.fields_by_name["value"]
        missing = [] if rule.map.HasField("max_pairs") else ["pairs"]
        missing += [] if rule.map.keys.string.HasField("max_len") else ["keys"]
        if value.type == FieldDescriptor.TYPE_STRING and not rule.map.values.string.HasField("max_len"):
            missing.append("values")
        return missing
    missing = []
    if field.is_repeated:
        missing += [] if rule.repeated.HasField("max_items") else ["items"]
        rule = rule.repeated.items
    if field.type == FieldDescriptor.TYPE_STRING and not rule.string.HasField("max_len"):
        missing.append("length")
    if field.type == FieldDescriptor.TYPE_BYTES and not rule.bytes.HasField("max_len"):
        missing.append("length")
    return missing


@pytest.mark.parametrize("field", all_request_fields(), ids=lambda field: field.full_name)
def test_every_request_field_has_an_upper_limit(field: FieldDescriptor) -> None:
    assert upper_limits_missing(field) == []


def test_the_check_itself_finds_a_field_without_a_limit() -> None:
    answer = rag_pb2.AskResponse.DESCRIPTOR.fields_by_name["answer"]  # a response, so it has none
    assert upper_limits_missing(answer) == ["length"]


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_every_method_has_messages_of_its_own(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_every_method_names_its_statuses(method: MethodDescriptor) -> None:
    source = (PROTOS.parent.parent / method.containing_service.file.name).read_text()
    match = re.search(rf"((?:  //.*\n)+)  rpc {method.name}\(", source)
    assert match, method.full_name
    assert re.search(r"[A-Z]+_[A-Z_]+:|The status codes are those of|no failures of its own", match.group(1))


@pytest.mark.parametrize("service", SERVICES.values(), ids=lambda service: service.full_name)
def test_services_are_nouns_in_the_versioned_package(service: ServiceDescriptor) -> None:
    assert re.fullmatch(r"quintet\.v1\.[A-Z][A-Za-z]+Service", service.full_name)


def test_every_reason_of_the_server_is_in_the_contract() -> None:
    def reasons(kind: type[errors.QuintetError]) -> Iterator[str]:
        if "reason" in vars(kind):
            yield kind.reason
        for child in kind.__subclasses__():
            yield from reasons(child)

    contract = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert set(reasons(errors.QuintetError)) <= contract
