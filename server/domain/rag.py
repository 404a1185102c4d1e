"""Collections of documents, and answers from them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import NamedTuple

from server.domain.chat import ChatDone, TextDelta
from server.domain.models import ModelIdentity

DEFAULT_COLLECTION = "wikipedia"  # the demonstration; requests that name no collection mean this one
_UNKNOWN = ModelIdentity("", "", "")
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found again. Segments and logs store it as JSON, fields in this order."""

    id: str
    text: str
    title: str = ""
    uri: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def embedded_text(title: str, passage: str) -> str:
    """The text to embed for a passage. The title comes first: it often names what the passage calls "it"."""
    return f"{title}\n{passage}" if title else passage


@dataclass(frozen=True, slots=True)
class ValueIn:
    """The document's metadata have this key with one of these values."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextRange:
    """The value of this key lies in a range, compared by code points. None means no bound."""

    key: str
    at_least: str | None = None
    at_most: str | None = None
    less_than: str | None = None


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The value of this key is a decimal number in a range. None means no bound."""

    key: str
    at_least: float | None = None
    at_most: float | None = None
    less_than: float | None = None


MetadataFilter = ValueIn | TextRange | NumberRange


@dataclass(frozen=True, slots=True)
class Query:
    """A search in a collection at `min_generation` or newer, among documents that fulfil all `filters`."""

    text: str
    collection: str
    top_k: int
    filters: tuple[MetadataFilter, ...] = ()
    min_generation: int = 0


class Passage(NamedTuple):
    """Code points `start` to `end` of a document's text. `score` is the cosine of its vector and the query's.

    The fields are those of quintet.v1.Passage.
    """

    document_id: str
    title: str
    text: str
    score: float
    uri: str
    metadata: dict[str, str]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class IndexIdentity:
    """Which state of a collection answered. The generation grows by one with every write."""

    collection: str
    generation: int


class CollectionState(IntEnum):
    """Names and values are those of quintet.v1.CollectionState."""

    READY = 1
    DEGRADED = 2
    NEEDS_REINDEX = 3
    FAILED = 4


# Descriptions have the names of the contract's fields: convert.py copies them by name.


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as it is served. If it has FAILED, only its name, state, message and owner hold.

    `owner` is the recorded one, empty if none is.
    """

    index: IndexIdentity
    state: CollectionState
    state_message: str
    document_count: int = 0
    passage_count: int = 0
    dimensions: int = 0
    model: ModelIdentity = _UNKNOWN
    size_bytes: int = 0
    update_time: datetime = _NEVER
    fault_count: int = 0
    log_count: int = 0
    index_type: str = ""
    recall_at_10: float = 0.0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A generation that has a segment. `origin` is what made it, for instance "fold"."""

    generation: int
    create_time: datetime
    document_count: int
    passage_count: int
    size_bytes: int
    model: ModelIdentity
    origin: str


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A document without its text."""

    id: str
    title: str
    uri: str
    metadata: dict[str, str]
    text_length: int


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """Documents sorted by id; `complete` if none follow."""

    documents: tuple[DocumentInfo, ...]
    complete: bool
    index: IndexIdentity


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Passages, best first, with the index and the embedder that found them."""

    passages: tuple[Passage, ...]
    index: IndexIdentity
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class WriteResult:
    """How many documents a write changed, and the generation that it made."""

    index: IndexIdentity
    added_count: int = 0
    updated_count: int = 0
    unchanged_count: int = 0
    deleted_count: int = 0


@dataclass(frozen=True, slots=True)
class ReindexProgress:
    """Passages that have been embedded, and all that there are."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class AskDone:
    """The end of an answer; `grounded` and `abstained` as in quintet.v1.AskResponse."""

    chat: ChatDone
    grounded: bool
    abstained: bool
    index: IndexIdentity


AskEvent = Retrieval | TextDelta | AskDone  # the passages that the model reads, text, and the end
