"""Conversations with a language model."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from server.domain.models import ModelDescription, ModelIdentity
from server.domain.money import Cost
from server.domain.usage import Usage


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


@dataclass(frozen=True, slots=True)
class Prices:
    """Cost of a million tokens in millionths of `currency` (ISO 4217), and the version of the table that says so."""

    prompt_micros: int = 0
    completion_micros: int = 0
    cached_micros: int | None = None  # of cached tokens of the prompt; None: as the others
    currency: str = "USD"
    version: str = ""

    def cost_micros(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Cost of one generation, rounded up."""
        cached_micros = self.prompt_micros if self.cached_micros is None else self.cached_micros
        prompt = (prompt_tokens - cached_tokens) * self.prompt_micros + cached_tokens * cached_micros
        return -((prompt + completion_tokens * self.completion_micros) // -1_000_000)


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


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """A provider is about to be asked; sent again if another one is asked instead, which happens before any text.

    `prompt_tokens` and `count` (tokens of a text) are our own, for when the provider will not tell.
    """

    provider: str
    model: ModelIdentity
    prices: Prices
    prompt_tokens: int
    count: Callable[[str], int]


class ChatProvider(Protocol):
    """Continues conversations, and says whom it asks. What is accounted is made of it: `ChatModel`."""

    description: ModelDescription

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation by our own count, which is the model's where its tokenizer is here."""
        ...

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """About what the answer costs at most; it does not wait, so long prompts are guessed from their size."""
        ...

    def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[ChatStarted | TextDelta | ChatDone, None]:
        """ChatStarted, deltas, then exactly one ChatDone. Closing the iterator stops the provider."""
        ...


class ChatModel(Protocol):
    """Continues conversations."""

    description: ModelDescription

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the conversation by our own count, which is the model's where its tokenizer is here."""
        ...

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """About what the answer costs at most; it does not wait, so long prompts are guessed from their size."""
        ...

    def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then exactly one ChatDone. Closing the iterator stops the provider."""
        ...

    async def complete(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> ChatAnswer:
        """The whole answer at once."""
        ...
