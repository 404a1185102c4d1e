"""The plain Python that callers pass, and the messages made of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NotRequired, TypedDict, TypeVar, get_args

from quintet.v1 import analysis_pb2, chat_pb2, pricing_pb2, rag_pb2, usage_pb2

from quintet_client.contract import rules
from quintet_client.errors import Violation, invalid
from quintet_client.messages import from_mapping, make

Role = Literal["system", "user", "assistant"]
Task = Literal["entities", "sentiment", "topics", "language", "key_phrases", "sentences", "syntax"]
TASKS: tuple[Task, ...] = get_args(Task)
MAX_DOCUMENTS = rules(rag_pb2.AddDocumentsRequest, "documents").repeated.max_items
# Size of one write, far below the 4 MiB that servers accept: small steps show progress and lose little on failure.
BATCH_BYTES = 256 * 1024
C = TypeVar("C", chat_pb2.ChatRequest, chat_pb2.StreamChatRequest)


class Message(TypedDict):
    """One message of a conversation."""

    role: Role
    content: str


class ChatOptions(TypedDict, total=False):
    """How to generate. Missing options have the server's or the model's default."""

    model: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: Sequence[str]
    seed: int | None


class House(TypedDict):
    """One house with all 18 features; areas in square feet. quintet.v1.House has the limits and categories."""

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
    """A document of a collection."""

    id: str
    text: str
    title: NotRequired[str]
    uri: NotRequired[str]
    metadata: NotRequired[Mapping[str, str]]


def as_list(value: str | Iterable[str]) -> list[str]:
    """One string or several, as a list; iterating over one string would yield its letters."""
    return [value] if isinstance(value, str) else list(value)


def chat(kind: type[C], messages: str | Sequence[Message], options: ChatOptions) -> C:
    """The request of Chat or StreamChat."""
    if "stop" in options:
        options["stop"] = as_list(options["stop"])
    return make(kind, messages=[*_chat_messages(messages)], **options)


def _chat_messages(messages: str | Sequence[Message]) -> Iterator[chat_pb2.ChatMessage]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        fields: object = message
        if isinstance(message, Mapping):
            if message.get("role") not in get_args(Role):
                raise invalid([Violation(f"{path}.role", f"must be one of {', '.join(get_args(Role))}")])
            fields = {**message, "role": f"CHAT_ROLE_{message['role'].upper()}"}
        yield from_mapping(chat_pb2.ChatMessage, fields, path, Message.__required_keys__)


def houses(values: Iterable[House | Mapping[str, object]]) -> list[pricing_pb2.House]:
    """All 18 features are required: a missing feature would arrive as 0."""
    return [from_mapping(pricing_pb2.House, v, f"houses[{i}]", House.__required_keys__) for i, v in enumerate(values)]


def documents(values: Iterable[Document | Mapping[str, object]]) -> list[rag_pb2.Document]:
    """Each document needs at least id and text."""
    return [
        from_mapping(rag_pb2.Document, v, f"documents[{i}]", Document.__required_keys__) for i, v in enumerate(values)
    ]


def imports(
    collection: str, values: Iterable[Document | Mapping[str, object]]
) -> Iterator[rag_pb2.ImportDocumentsRequest]:
    """The requests of ImportDocuments, each within the limits of one write."""
    batch = make(rag_pb2.ImportDocumentsRequest, collection=collection)
    size = 0
    for index, value in enumerate(values):
        document = from_mapping(rag_pb2.Document, value, f"documents[{index}]", Document.__required_keys__)
        if batch.documents and (len(batch.documents) == MAX_DOCUMENTS or size + document.ByteSize() > BATCH_BYTES):
            yield batch
            batch, size = rag_pb2.ImportDocumentsRequest(), 0
        batch.documents.append(document)
        size += document.ByteSize()
    yield batch


def tasks(names: Iterable[Task | str] | None) -> list[analysis_pb2.AnalysisTask.ValueType]:
    """Tasks by name; None means all."""
    values = []
    for index, name in enumerate(names or ()):
        if name not in TASKS:
            raise invalid([Violation(f"tasks[{index}]", f"must be one of {', '.join(TASKS)}")])
        values.append(analysis_pb2.AnalysisTask.Value(f"ANALYSIS_TASK_{name.upper()}"))
    return values


def usage_filter(
    since: datetime | None, until: datetime | None, tenant: str | None, service: str | None, model: str | None
) -> usage_pb2.UsageFilter:
    """The calls to report. Times without a zone are local."""
    found = make(usage_pb2.UsageFilter, tenant=tenant, service=service, model=model)
    for name, time in (("start_time", since), ("end_time", until)):
        try:
            if time:
                getattr(found, name).FromDatetime(time.astimezone(UTC))
        except (ValueError, OverflowError):  # near the first or last year, a zone can move it out of what exists
            raise invalid([Violation(f"filter.{name}", "must be a time from the year 1 to 9999 in UTC")]) from None
    return found
