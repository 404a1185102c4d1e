"""Analysing a text: what there is to find, and the models that find it."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from server.domain.models import ModelDescription, ModelIdentity
from server.domain.texts import Label


class AnalysisTask(IntEnum):
    """Values are those of quintet.v1.AnalysisTask."""

    ENTITIES = 1
    SENTIMENT = 2
    TOPICS = 3
    LANGUAGE = 4
    KEY_PHRASES = 5
    SENTENCES = 6
    SYNTAX = 7


class TextSpan(NamedTuple):
    """Code points `start` to `end` of the text. The fields of what has a place in a text are those of the contract."""

    text: str
    start: int
    end: int


class Entity(NamedTuple):
    """A name with its OntoNotes type."""

    text: str
    start: int
    end: int
    type: str


class KeyPhrase(NamedTuple):
    """A noun phrase, its weight relative to the first (0..1) and how often it occurs."""

    text: str
    start: int
    end: int
    score: float
    count: int  # type: ignore[assignment]  # in place of tuple.count


class Token(NamedTuple):
    """A token with its grammar; `head` is the index of its head in the list of tokens, its own for a root."""

    text: str
    start: int
    end: int
    lemma: str
    pos: str
    tag: str
    dependency: str
    head: int


class ParsedText(NamedTuple):
    """Everything that one parse of a text yields."""

    entities: tuple[Entity, ...]
    key_phrases: tuple[KeyPhrase, ...]
    sentences: tuple[TextSpan, ...]
    tokens: tuple[Token, ...]


class TextParser(Protocol):
    """Splits, tags and parses text."""

    description: ModelDescription

    async def parse(self, text: str, *, deadline: float) -> ParsedText:
        """All of it; one parse serves every task."""


class LanguageIdentifier(Protocol):
    """Identifies languages."""

    description: ModelDescription

    async def identify(self, text: str, *, deadline: float) -> tuple[Label, ...]:
        """Up to 3 ISO 639 codes, most probable first."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The value of one task: a Classification for SENTIMENT and TOPICS, Labels for LANGUAGE, else of ParsedText."""

    task: AnalysisTask
    value: Any
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A task without a result: the reason as in quintet.v1.ErrorReason without its prefix, and a message."""

    task: AnalysisTask
    reason: str
    message: str
