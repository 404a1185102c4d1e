"""Collections of documents, and answers from them."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from server.engines.interfaces.chat import ChatDone, TextDelta
from server.engines.interfaces.models import ModelIdentity


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found again."""

    id: str
    text: str
    title: str = ""
    uri: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


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
    """Which state of a collection answered."""

    collection: str
    generation: int


@dataclass(frozen=True, slots=True)
class IndexDescription:
    """What GetIndex says of a collection."""

    identity: IndexIdentity
    document_count: int
    passage_count: int
    dimensions: int
    embedder: ModelIdentity
    size_bytes: int
    updated: datetime


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


class Retriever(Protocol):
    """Keeps collections and searches them. Unknown collections raise CollectionNotFound."""

    async def retrieve(self, query: str, collection: str, top_k: int, *, deadline: float) -> Retrieval:
        """The `top_k` passages that fit best, fewer if the collection has fewer."""
        ...

    async def add(self, collection: str, documents: Sequence[Document], *, deadline: float) -> Written:
        """Add or replace by id; makes the collection. Returns when it is on disk and served."""
        ...

    async def delete(self, collection: str, document_ids: Sequence[str], *, deadline: float) -> Written:
        """Remove by id; unknown ids are ignored."""
        ...

    def describe(self, collection: str) -> IndexDescription:
        """The state that is served now."""
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

    def stream(
        self, question: str, collection: str, top_k: int, *, deadline: float
    ) -> AsyncGenerator[AskSources | TextDelta | AskDone, None]:
        """AskSources, TextDeltas, then exactly one AskDone. A unary answer is this stream, collected."""
        ...
