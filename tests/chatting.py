"""Chat with an upstream in tests, without a ledger."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from server.domain.chat import ChatDone, ChatOptions, ChatStarted, Message, TextDelta
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.endpoint import Endpoint
from server.tasks.chat.openai_upstream import Upstream, limiter_of
from server.tasks.chat.router import Router
from server.tasks.chat.tokens import TokenCounter
from tests.fakes import OpenAIServer

MESSAGES = [Message("system", "Be brief."), Message("user", "Hi!")]


@dataclass
class ChatAnswer:
    text: str
    done: ChatDone


def soon(seconds: float = 5.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def described(name: str = "gpt", context_tokens: int = 4096) -> ModelDescription:
    return ModelDescription(
        ModelIdentity(name, "configured", ""), ModelTask.CHAT, "openai", max_input_tokens=context_tokens
    )


@asynccontextmanager
async def chatting(
    endpoint: Endpoint, *, slots: int = 1, context_tokens: int = 4096, breaker: CircuitBreaker | None = None
) -> AsyncIterator[Upstream]:
    """The upstream of an endpoint while the body runs."""
    description = described(endpoint.model, context_tokens)
    breaker = breaker or CircuitBreaker(endpoint.provider)
    upstream = Upstream(description, endpoint, limiter_of(slots), TokenCounter(), breaker)
    try:
        yield upstream
    finally:
        await upstream.close()


def endpoint_of(server: OpenAIServer, provider: str = "fake") -> Endpoint:
    """A scripted server as a provider's endpoint."""
    return Endpoint(provider, server.base_url, "gpt", server.api_key)


async def events_of(
    model: Upstream | Router,
    messages: Sequence[Message] = MESSAGES,
    options: ChatOptions | None = None,
    *,
    deadline: float | None = None,
) -> list[ChatStarted | TextDelta | ChatDone]:
    """All that it sends."""
    stream = model.stream(messages, options or ChatOptions(), deadline=deadline or soon())
    async with aclosing(stream) as events:
        return [event async for event in events]


async def complete(
    model: Upstream | Router,
    messages: Sequence[Message] = MESSAGES,
    options: ChatOptions | None = None,
    *,
    deadline: float | None = None,
) -> ChatAnswer:
    """The whole answer."""
    return answer_of(await events_of(model, messages, options, deadline=deadline))


def answer_of(events: Sequence[ChatStarted | TextDelta | ChatDone]) -> ChatAnswer:
    done = events[-1]
    assert isinstance(done, ChatDone)
    return ChatAnswer("".join(event.text for event in events if isinstance(event, TextDelta)), done)
