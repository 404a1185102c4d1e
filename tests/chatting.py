"""Chat with a provider, in tests: what the server's own parts do around one, without writing anything down."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from server.domain.chat import ChatAnswer, ChatDone, ChatOptions, ChatProvider, ChatStarted, Message, TextDelta
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.tasks.chat.openai_upstream import Endpoint, OpenAIProvider, turns_of
from server.tasks.chat.tokens import ByteCounter, TokenCounter
from tests.fakes import OpenAIServer

MESSAGES = [Message("system", "Be brief."), Message("user", "Hi!")]


def soon(seconds: float = 5.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def described(name: str = "gpt", context_tokens: int = 4096) -> ModelDescription:
    return ModelDescription(
        ModelIdentity(name, "configured", ""), ModelTask.CHAT, "openai", max_input_tokens=context_tokens
    )


@asynccontextmanager
async def chatting(
    endpoint: Endpoint, *, slots: int = 1, context_tokens: int = 4096, counter: TokenCounter | None = None
) -> AsyncIterator[OpenAIProvider]:
    """The model of an endpoint while the body runs."""
    description = described(endpoint.model, context_tokens)
    provider = OpenAIProvider(description, endpoint, turns_of(slots), counter or ByteCounter())
    try:
        yield provider
    finally:
        await provider.close()


def endpoint_of(server: OpenAIServer, provider: str = "fake") -> Endpoint:
    """A scripted server as a provider's endpoint."""
    return Endpoint(provider, server.base_url, "gpt", server.api_key)


async def events_of(
    provider: ChatProvider,
    messages: Sequence[Message] = MESSAGES,
    options: ChatOptions | None = None,
    *,
    deadline: float | None = None,
) -> list[ChatStarted | TextDelta | ChatDone]:
    """All that it sends."""
    stream = provider.stream(messages, options or ChatOptions(), deadline=deadline or soon())
    async with aclosing(stream) as events:
        return [event async for event in events]


async def complete(
    provider: ChatProvider,
    messages: Sequence[Message] = MESSAGES,
    options: ChatOptions | None = None,
    *,
    deadline: float | None = None,
) -> ChatAnswer:
    """The whole answer."""
    events = await events_of(provider, messages, options, deadline=deadline)
    done = events[-1]
    assert isinstance(done, ChatDone)
    return ChatAnswer("".join(event.text for event in events if isinstance(event, TextDelta)), done)
