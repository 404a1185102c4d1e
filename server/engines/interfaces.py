"""What engines promise and the plain values that they return. The servicers know these and nothing behind them.

Every method is a coroutine that never blocks the event loop; its work runs on lanes (`server/runtime/lanes.py`),
threads or another process. Cancelling the coroutine abandons the work. `deadline` is a `time.monotonic()` instant:
work that has not begun by then is not begun, and `DeadlineExceeded` is raised.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# ---------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model made a result. `digest` is "sha256:..." of the artefact's manifest, empty for a provider's model."""

    name: str
    version: str
    digest: str


class ModelTask(Enum):
    """What a model does. Names are those of quintet.v1.ModelTask."""

    CLASSIFICATION = 1
    REGRESSION = 2
    CHAT = 3
    EMBEDDING = 4
    LINGUISTICS = 5
    LANGUAGE_ID = 6


@dataclass(frozen=True, slots=True)
class Feature:
    """An input of a regression: a category with `allowed_values`, or a number with the range of the training data."""

    name: str
    allowed_values: tuple[str, ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What ModelService says of a model."""

    identity: ModelIdentity
    task: ModelTask
    engine: str
    labels: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    licence: str = ""
    max_input_tokens: int = 0
    size_bytes: int = 0
    created: datetime | None = None


@runtime_checkable
class Described(Protocol):
    """An engine that can say what it is."""

    description: ModelDescription


# ---------------------------------------------------------------- classification and embedding


@dataclass(frozen=True, slots=True)
class Label:
    """A class with its probability in 0..1."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """All labels of one text, most probable first; `truncated` if the text's end was not read."""

    labels: tuple[Label, ...]
    truncated: bool


class Classifier(Protocol):
    """Puts texts into classes."""

    description: ModelDescription

    async def classify(self, texts: Sequence[str], *, deadline: float) -> list[Classification]:
        """One result a text, in order. Scores of a text add up to 1."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose cosine tells how near their meanings are."""

    description: ModelDescription

    async def embed(self, texts: Sequence[str], *, deadline: float) -> "NDArray[np.float32]":
        """float32 [texts, dimensions] in their order; every row has length 1."""
        ...


# ---------------------------------------------------------------- pricing


@dataclass(frozen=True, slots=True)
class House:
    """The 18 features, named and ordered as in quintet.v1.House; areas in square feet."""

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


@dataclass(frozen=True, slots=True)
class PriceEstimate:
    """US dollars; low and high bound the 90 % prediction interval."""

    price_usd: float
    low_usd: float
    high_usd: float


class Pricer(Protocol):
    """Estimates prices."""

    description: ModelDescription

    async def predict(self, houses: Sequence[House], *, deadline: float) -> list[PriceEstimate]:
        """One estimate a house, in order. Raises InvalidRequest naming "houses[i].field" for unknown categories."""
        ...


# ---------------------------------------------------------------- chat


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to generate; None is the provider's default."""

    max_output_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


class UsageSource(Enum):
    """Who counted the tokens. Values are those of quintet.v1.UsageSource."""

    PROVIDER = 1
    ESTIMATED = 2
    UNAVAILABLE = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost in millionths of `currency` (ISO 4217)."""

    prompt_tokens: int
    completion_tokens: int
    source: UsageSource
    cost_micros: int = 0
    currency: str = "USD"


class FinishReason(Enum):
    """Why a generation ended. Values are those of quintet.v1.FinishReason."""

    STOP = 1
    LENGTH = 2
    CONTENT_FILTER = 3
    NO_PASSAGES = 4


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of a generated text."""

    text: str


@dataclass(frozen=True, slots=True)
class ChatDone:
    """The end of a generation."""

    finish_reason: FinishReason
    usage: Usage
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole generation."""

    text: str
    done: ChatDone


class ChatModel(Protocol):
    """Continues conversations."""

    description: ModelDescription

    def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then exactly one ChatDone. Closing the iterator stops the provider."""
        ...

    async def complete(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> ChatAnswer:
        """The whole answer at once."""
        ...


# ---------------------------------------------------------------- retrieval


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


# ---------------------------------------------------------------- analysis


class AnalysisTask(Enum):
    """Values are those of quintet.v1.AnalysisTask."""

    ENTITIES = 1
    SENTIMENT = 2
    TOPICS = 3
    LANGUAGE = 4
    KEY_PHRASES = 5
    SENTENCES = 6
    SYNTAX = 7


@dataclass(frozen=True, slots=True)
class Span:
    """Code points `start` to `end` of the text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entity:
    """A name with its OntoNotes type."""

    span: Span
    type: str


@dataclass(frozen=True, slots=True)
class KeyPhrase:
    """A noun phrase, its weight relative to the first (0..1) and how often it occurs."""

    span: Span
    score: float
    count: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its grammar; `head` is the index of its head in the list of tokens, its own for a root."""

    span: Span
    lemma: str
    pos: str
    tag: str
    dependency: str
    head: int


@dataclass(frozen=True, slots=True)
class Linguistics:
    """Everything that one parse of a text yields."""

    entities: tuple[Entity, ...]
    key_phrases: tuple[KeyPhrase, ...]
    sentences: tuple[Span, ...]
    tokens: tuple[Token, ...]


class Linguist(Protocol):
    """Splits, tags and parses text."""

    description: ModelDescription

    async def parse(self, text: str, *, deadline: float) -> Linguistics:
        """All of it; one parse serves every task."""
        ...


class LanguageIdentifier(Protocol):
    """Recognises languages."""

    description: ModelDescription

    async def identify(self, text: str, *, deadline: float) -> tuple[Label, ...]:
        """Up to 3 ISO 639 codes, most probable first."""
        ...


AnalysisValue = (
    tuple[Entity, ...]
    | Classification
    | tuple[Label, ...]
    | tuple[KeyPhrase, ...]
    | tuple[Span, ...]
    | tuple[Token, ...]
)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The value of one task: a Classification for SENTIMENT and TOPICS, Labels for LANGUAGE, else what it is named."""

    task: AnalysisTask
    value: AnalysisValue
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A task without a result: the reason as in quintet.v1.ErrorReason without its prefix, and a message."""

    task: AnalysisTask
    reason: str
    message: str


class Analyzer(Protocol):
    """Looks at a text in several ways at once."""

    def stream(
        self, text: str, tasks: frozenset[AnalysisTask], *, deadline: float
    ) -> AsyncGenerator[TaskResult | TaskFailed, None]:
        """One item a task, as they become ready."""
        ...
