"""What callers pass, in plain Python, and the requests that are made of it."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NotRequired, TypedDict, TypeVar, get_args

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from quintet.v1 import analysis_pb2, chat_pb2, pricing_pb2, rag_pb2, usage_pb2

from quintet_client.contract import rules
from quintet_client.errors import Violation, invalid

Role = Literal["system", "user", "assistant"]
Task = Literal["entities", "sentiment", "topics", "language", "key_phrases", "sentences", "syntax"]
TASKS: tuple[Task, ...] = get_args(Task)
M = TypeVar("M", chat_pb2.ChatMessage, pricing_pb2.House, rag_pb2.Document)
MAX_DOCUMENTS = rules(rag_pb2.AddDocumentsRequest, "documents").repeated.max_items
# Of one write; far below the 4 MiB that servers read: small steps show progress, and lose little when one fails.
BATCH_BYTES = 256 * 1024
C = TypeVar("C", chat_pb2.ChatRequest, chat_pb2.StreamChatRequest)


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


class ChatOptions(TypedDict, total=False):
    """How to generate. What is not given is the server's or the model's default."""

    model: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: Sequence[str]
    seed: int | None


class House(TypedDict):
    """One house, all 18 features; areas in square feet. The limits and categories are those of quintet.v1.House."""

    above_ground_area_sqft: float
    lot_area_sqft: float
    overall_quality: int
    overall_condition: int
    year_built: int
    year_remodeled: int
    basement_area_sqft: float
    garage_cars: int
    full_baths: int
    half_baths: int
    bedrooms: int
    total_rooms: int
    fireplaces: int
    neighborhood: str
    building_type: str
    house_style: str
    central_air: bool
    kitchen_quality: str


class Document(TypedDict):
    """A text to be found again."""

    id: str
    text: str
    title: NotRequired[str]
    uri: NotRequired[str]
    metadata: NotRequired[Mapping[str, str]]


def listed(value: str | Iterable[str]) -> list[str]:
    """One string or several; a string alone would otherwise be taken for its letters."""
    return [value] if isinstance(value, str) else list(value)


def chat(kind: type[C], messages: str | Sequence[Message], options: ChatOptions) -> C:
    """The request of Chat or StreamChat."""
    if "stop" in options:
        options["stop"] = listed(options["stop"])
    return kind(messages=_turns(messages), **options)


def _turns(messages: str | Sequence[Message]) -> list[chat_pb2.ChatMessage]:
    turns: Sequence[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    wire = []
    for index, turn in enumerate(turns):
        path = f"messages[{index}]"
        if turn.get("role") not in get_args(Role):
            raise invalid([Violation(f"{path}.role", f"must be one of {', '.join(get_args(Role))}")])
        named = {**turn, "role": f"CHAT_ROLE_{turn['role'].upper()}"}
        wire.append(_message(chat_pb2.ChatMessage, named, path, Message.__required_keys__))
    return wire


def houses(values: Iterable[House | Mapping[str, object]]) -> list[pricing_pb2.House]:
    """All 18 features are required: on the wire, a feature that is left out would count as 0."""
    return [_message(pricing_pb2.House, v, f"houses[{i}]", House.__required_keys__) for i, v in enumerate(values)]


def documents(values: Iterable[Document | Mapping[str, object]]) -> list[rag_pb2.Document]:
    """Documents with id and text at least."""
    return [_message(rag_pb2.Document, v, f"documents[{i}]", Document.__required_keys__) for i, v in enumerate(values)]


def imports(
    collection: str, values: Iterable[Document | Mapping[str, object]]
) -> Iterator[rag_pb2.ImportDocumentsRequest]:
    """The requests of ImportDocuments, each as large as one write should be."""
    batch = rag_pb2.ImportDocumentsRequest(collection=collection)
    size = 0
    for index, value in enumerate(values):
        document = _message(rag_pb2.Document, value, f"documents[{index}]", Document.__required_keys__)
        if batch.documents and (len(batch.documents) == MAX_DOCUMENTS or size + document.ByteSize() > BATCH_BYTES):
            yield batch
            batch, size = rag_pb2.ImportDocumentsRequest(), 0
        batch.documents.append(document)
        size += document.ByteSize()
    yield batch


def tasks(names: Iterable[Task | str] | None) -> list[analysis_pb2.AnalysisTask.ValueType]:
    """Tasks by name; none means all."""
    wire = []
    for index, name in enumerate(names or ()):
        if name not in TASKS:
            raise invalid([Violation(f"tasks[{index}]", f"must be one of {', '.join(TASKS)}")])
        wire.append(analysis_pb2.AnalysisTask.Value(f"ANALYSIS_TASK_{name.upper()}"))
    return wire


def usage_filter(
    since: datetime | None, until: datetime | None, tenant: str | None, service: str | None, model: str | None
) -> usage_pb2.UsageFilter:
    """Which calls are meant."""
    wire = usage_pb2.UsageFilter(tenant=tenant, service=service, model=model)
    if since:
        wire.start_time.FromDatetime(since.astimezone(UTC))
    if until:
        wire.end_time.FromDatetime(until.astimezone(UTC))
    return wire


def _message(kind: type[M], given: Mapping[str, object], path: str, required: Iterable[str]) -> M:
    """A message from a mapping. Raises InvalidRequest for fields that are missing, unknown or of another type."""
    fields = kind.DESCRIPTOR.fields_by_name
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
        except json_format.ParseError:
            violations.append(Violation(f"{path}.{name}", f"must be {_kind(fields[name])}"))
    if violations:
        raise invalid(violations)
    return message


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _kind(descriptor: FieldDescriptor) -> str:
    kinds = {
        FieldDescriptor.CPPTYPE_DOUBLE: "a number",
        FieldDescriptor.CPPTYPE_UINT32: "a whole number, 0 or more",
        FieldDescriptor.CPPTYPE_BOOL: "true or false",
        FieldDescriptor.CPPTYPE_STRING: "a text",
    }
    return kinds.get(descriptor.cpp_type, "an object of texts")
