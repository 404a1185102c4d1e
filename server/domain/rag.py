"""Collections of documents, and answers from them."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

from server.domain.chat import ChatDone, TextDelta
from server.domain.models import ModelIdentity
from server.domain.money import Cost


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found again."""

    id: str
    text: str
    title: str = ""
    uri: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def embedded_text(title: str, passage: str) -> str:
    """What is embedded for a passage: under its document's title, which often names what the text calls "it"."""
    return f"{title}\n{passage}" if title else passage


@dataclass(frozen=True, slots=True)
class ValueIn:
    """The document's metadata have this key with one of these values."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextRange:
    """The value of this key lies in a range by code points; bounds that are None do not bind."""

    key: str
    at_least: str | None = None
    at_most: str | None = None
    less_than: str | None = None


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The value of this key is a decimal number in a range; bounds that are None do not bind."""

    key: str
    at_least: float | None = None
    at_most: float | None = None
    less_than: float | None = None


MetadataFilter = ValueIn | TextRange | NumberRange


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for, and where: passages of documents that fulfil all `filters`, in a state of the collection that
    is not older than `min_generation`.
    """

    text: str
    collection: str
    top_k: int
    filters: tuple[MetadataFilter, ...] = ()
    min_generation: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """Code points `start` to `end` of a document's text, with the cosine of its vector and the query's."""

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
    """Which state of a collection answered. The number grows by one with every write."""

    collection: str
    generation: int


class CollectionState(Enum):
    """Names and values are those of quintet.v1.CollectionState."""

    READY = 1
    DEGRADED = 2
    NEEDS_REINDEX = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class CollectionSummary:
    """What ListCollections says of a collection. Generation and count are 0 if it has failed."""

    identity: IndexIdentity
    state: CollectionState
    message: str
    document_count: int


@dataclass(frozen=True, slots=True)
class IndexDescription:
    """What GetIndex says of a collection."""

    identity: IndexIdentity
    state: CollectionState
    message: str
    document_count: int
    passage_count: int
    dimensions: int
    embedder: ModelIdentity
    size_bytes: int
    updated: datetime
    fault_count: int
    log_count: int
    index_type: str
    recall_at_10: float


@dataclass(frozen=True, slots=True)
class GenerationDescription:
    """A state of a collection that has files of its own."""

    number: int
    created: datetime
    document_count: int
    passage_count: int
    size_bytes: int
    embedder: ModelIdentity
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
    """Passages, best first, with what found them."""

    passages: tuple[Passage, ...]
    index: IndexIdentity
    embedder: ModelIdentity


@dataclass(frozen=True, slots=True)
class Written:
    """What a write changed."""

    index: IndexIdentity
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class ReindexProgress:
    """Passages that have been embedded, and all that there are."""

    done: int
    total: int


class Retriever(Protocol):
    """Keeps collections and searches them. Unknown collections raise CollectionNotFound."""

    async def close(self) -> None:
        """Give up what goes on in the background; what was acknowledged is on disk."""
        ...

    async def retrieve(self, query: Query, *, deadline: float) -> Retrieval:
        """The `top_k` passages that fit best, fewer if the collection has fewer. Raises GenerationNotReached."""
        ...

    async def add(self, collection: str, documents: Sequence[Document], *, deadline: float) -> Written:
        """Add or replace by id; makes the collection. Returns when it is on disk and served."""
        ...

    async def delete(self, collection: str, document_ids: Sequence[str], *, deadline: float) -> Written:
        """Remove by id; unknown ids are ignored."""
        ...

    async def create(self, collection: str, *, deadline: float) -> IndexIdentity:
        """Make an empty collection. Raises CollectionExists."""
        ...

    async def drop(self, collection: str, *, deadline: float) -> IndexIdentity:
        """Remove a collection with all its generations; return its last state."""
        ...

    def collections(self) -> list[CollectionSummary]:
        """All collections, sorted by name."""
        ...

    async def describe(self, collection: str, min_generation: int = 0, *, deadline: float) -> IndexDescription:
        """The state that is served now. Raises GenerationNotReached."""
        ...

    async def documents(self, collection: str, after: str, limit: int) -> DocumentPage:
        """Up to `limit` documents with ids after `after`, sorted by id."""
        ...

    async def generations(self, collection: str) -> tuple[IndexIdentity, list[GenerationDescription]]:
        """What is served now, and the kept generations, newest first."""
        ...

    async def rollback(self, collection: str, generation: int, *, deadline: float) -> IndexIdentity:
        """Make a new generation with the content of a kept one. Raises GenerationNotFound."""
        ...

    async def compact(self, collection: str, *, deadline: float) -> IndexDescription:
        """Fold the log into a generation of files now."""
        ...

    def reindex(self, collection: str, *, deadline: float) -> AsyncGenerator[ReindexProgress | IndexIdentity, None]:
        """Embed everything again, with the present embedder: progress, then exactly one identity."""
        ...


@dataclass(frozen=True, slots=True)
class AskSources:
    """What the model is about to read."""

    retrieval: Retrieval


@dataclass(frozen=True, slots=True)
class AskDone:
    """The end of an answer; `grounded` as in quintet.v1.AskResponse."""

    chat: ChatDone
    grounded: bool
    index: IndexIdentity


class Answerer(Protocol):
    """Answers questions from passages."""

    def estimate(self, question: Query) -> Cost:
        """About what an answer costs at most."""
        ...

    def stream(self, question: Query, *, deadline: float) -> AsyncGenerator[AskSources | TextDelta | AskDone, None]:
        """AskSources, TextDeltas, then exactly one AskDone. A unary answer is this stream, collected."""
        ...
