"""A provider as a model, with nothing written down."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from server.engines.interfaces import (
    ChatAnswer,
    ChatDone,
    ChatOptions,
    ChatProvider,
    ChatStarted,
    Estimate,
    Message,
    TextDelta,
)


class UnaccountedChatModel:
    """Implements `ChatModel`."""

    def __init__(self, provider: ChatProvider) -> None:
        self.description = provider.description
        self._provider = provider

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """As the provider counts."""
        return await self._provider.prompt_tokens(messages)

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Estimate:
        """As the provider estimates."""
        return self._provider.estimate(messages, options)

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then one ChatDone."""
        async with aclosing(self._provider.stream(messages, options, deadline=deadline)) as events:
            async for event in events:
                if not isinstance(event, ChatStarted):
                    yield event

    async def complete(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> ChatAnswer:
        """The stream, collected."""
        texts: list[str] = []
        async with aclosing(self.stream(messages, options, deadline=deadline)) as events:
            async for event in events:
                if isinstance(event, ChatDone):
                    return ChatAnswer("".join(texts), event)
                texts.append(event.text)
        raise AssertionError("a stream ends with ChatDone")
