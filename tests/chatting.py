"""Chat with an upstream in tests, without a ledger."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import openai

from server.domain.chat import ChatDone, ChatOptions, ChatStarted, Message, Prices, TextDelta
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.endpoint import Endpoint
from server.tasks.chat.openai_upstream import Upstream, limiter_of
from server.tasks.chat.providers_file import Model, OpenAI
from server.tasks.chat.router import Router
from server.tasks.chat.tokens import TokenCounter
from server.tasks.chat.upstreams import client_of
from tests.fakes import OpenAIServer

FREE = Prices()
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
    client: openai.AsyncOpenAI,
    provider: str = "fake",
    *,
    model: str = "gpt",
    slots: int = 1,
    context_tokens: int = 4096,
    breaker: CircuitBreaker | None = None,
    prices: Prices = FREE,
    token_seconds: float = 60.0,
    endpoint: Endpoint | None = None,
) -> AsyncIterator[Upstream]:
    """The upstream of a client while the body runs."""
    breaker = breaker or CircuitBreaker(provider)
    upstream = Upstream(
        described(model, context_tokens),
        endpoint or Endpoint(client, model),
        limiter_of(slots),
        TokenCounter(),
        breaker,
        prices=prices,
        token_seconds=token_seconds,
    )
    try:
        yield upstream
    finally:
        await client.close()


def client(base_url: str, key: str, headers: Mapping[str, str] | None = None) -> openai.AsyncOpenAI:
    """A client of a provider's endpoint."""
    models = {"gpt": Model(context_tokens=4096)}
    return client_of(OpenAI(kind="openai", base_url=base_url, headers=headers or {}, models=models), key, "gpt")


def client_for(server: OpenAIServer) -> openai.AsyncOpenAI:
    """A client of a scripted server."""
    return client(server.base_url, server.api_key)


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
