"""Conversations with a language model."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from server.domain.models import ModelDescription, ModelIdentity
from server.domain.money import Cost
from server.domain.usage import Usage, UsageSource


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to answer; None is the provider's default. `of_caller` names the options that the caller chose: an upstream
    that does not take them refuses the call. It is asked without an option that the server chose.
    """

    max_output_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    of_caller: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Prices:
    """Cost of a million tokens in millionths of `currency` (ISO 4217), and the version of the price table."""

    prompt_micros: int = 0
    completion_micros: int = 0
    cached_micros: int | None = None  # of cached tokens of the prompt; None: as the others
    currency: str = "USD"
    version: str = ""

    def cost_micros(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
        """Cost of one answer, rounded up."""
        cached_micros = self.prompt_micros if self.cached_micros is None else self.cached_micros
        prompt = (prompt_tokens - cached_tokens) * self.prompt_micros + cached_tokens * cached_micros
        return -((prompt + completion_tokens * self.completion_micros) // -1_000_000)

    def usage(self, prompt: int, completion: int, source: UsageSource, cached: int = 0) -> Usage:
        """So many tokens with their cost."""
        return Usage(prompt, completion, source, self.cost_micros(prompt, completion, cached), self.currency, cached)


class FinishReason(Enum):
    """Why an answer ended. Values are those of quintet.v1.FinishReason."""

    STOP = 1
    LENGTH = 2
    CONTENT_FILTER = 3
    NO_PASSAGES = 4


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """An upstream is about to be asked. Another one may follow if it fails before any text.

    `prompt_tokens` and `count` (tokens of a text) are our own, for when the provider reports none.
    """

    provider: str
    model: ModelIdentity
    prices: Prices
    prompt_tokens: int
    count: Callable[[str], int]


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ChatDone:
    finish_reason: FinishReason
    usage: Usage
    model: ModelIdentity


class ChatModel(Protocol):
    """Continues conversations. Every stream has an entry in the ledger and needs a current call."""

    description: ModelDescription

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Our own count of the conversation's tokens; exact if the model's tokenizer is here."""
        ...

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """What the answer costs at most, approximately. It does not block: long prompts are estimated by their size."""
        ...

    def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then exactly one ChatDone. Closing the iterator stops the provider."""
        ...
