"""Conversations with a language model."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from server.engines.interfaces.models import ModelDescription, ModelIdentity


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
