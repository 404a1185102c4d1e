"""A chat model that does not say whom it asks, as a provider that does."""

from collections.abc import AsyncGenerator, Sequence

from server.engines.chat import estimated_tokens
from server.engines.interfaces import (
    ChatDone,
    ChatModel,
    ChatOptions,
    ChatStarted,
    Estimate,
    Message,
    Prices,
    TextDelta,
)


class AnnouncedProvider:
    """Implements `ChatProvider` with a `ChatModel`."""

    def __init__(self, name: str, model: ChatModel) -> None:
        self.description = model.description
        self._name = name
        self._model = model

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Estimate:
        """The model's."""
        return self._model.estimate(messages, options)

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[ChatStarted | TextDelta | ChatDone, None]:
        """ChatStarted, and what the model sends."""
        events = self._model.stream(messages, options, deadline=deadline)
        prompt = self._model.estimate(messages, options).tokens - options.max_output_tokens
        try:
            yield ChatStarted(self._name, self.description.identity, Prices(), prompt, estimated_tokens)
            async for event in events:
                yield event
        finally:
            await events.aclose()
