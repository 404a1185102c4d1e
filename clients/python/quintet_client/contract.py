"""Reads the contract: its services, and the limits beside its fields."""

from buf.validate import validate_pb2
from google.protobuf.message import Message
from quintet.v1 import analysis_pb2, chat_pb2, classification_pb2, model_pb2, pricing_pb2, rag_pb2, usage_pb2

PACKAGE = "quintet.v1"
SERVICES: tuple[str, ...] = tuple(
    service.full_name
    for file in (classification_pb2, pricing_pb2, chat_pb2, rag_pb2, analysis_pb2, model_pb2, usage_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


def rules(message: type[Message], field: str) -> validate_pb2.FieldRules:
    """The limits of a field, for instance `rules(Document, "text").string.max_len`."""
    return message.DESCRIPTOR.fields_by_name[field].GetOptions().Extensions[validate_pb2.field]


def enum_name(message: Message, field: str) -> str:
    """The value of an enum field in lower case without its prefix; its number if this version lacks it."""
    number: int = getattr(message, field)
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert enum is not None, f"{field} is an enum"
    # Every name starts with the enum's own; the zero value is, for instance, MODEL_STATE_UNSPECIFIED.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum.values_by_number.get(number)
    return value.name.removeprefix(prefix).lower() if value else str(number)
