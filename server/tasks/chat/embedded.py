"""The embedded language model: a supervised llama.cpp process, spoken to like any other endpoint."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import server
from server.domain.chat import ChatDone, ChatOptions, ChatStarted, Message, TextDelta
from server.domain.errors import ModelLoading
from server.domain.models import ModelTask
from server.domain.money import Cost
from server.inference.supervised_process import Supervisor
from server.models.artefact import Artefact, unusable
from server.models.describe import describe, from_schema
from server.tasks.chat.statistics import UpstreamStatistics
from server.tasks.chat.tokens import TokenizerCounter

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import OpenAIProvider

# All that the child needs, and nothing that belongs to others. libgomp's threads wait for each other by spinning:
# unlimited, that makes generation ten times slower as soon as another process wants a core, and without any spinning
# it is slower by a third on a quiet machine.
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(server.__path__[0]).parent),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
}


EMBEDDED = "embedded"  # the provider's name


class EmbeddedProvider:
    """Implements `ChatProvider` with an artefact's model.gguf between start() and close().

    `slots` generations run at once, each with `context_tokens` of context. `on_change` is called when `ready` changes.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        slots: int,
        context_tokens: int,
        token_seconds: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        name = artefact.manifest.name
        self.description = describe(artefact, ModelTask.CHAT, "llama.cpp", max_input_tokens=context_tokens)
        self.generations = UpstreamStatistics()
        self._artefact = artefact
        self._key = secrets.token_urlsafe(32)
        self._slots = slots
        self._token_seconds = token_seconds
        self._chat: OpenAIProvider | None = None  # between start() and close()
        self._on_change = on_change
        self._supervisor = Supervisor(
            f'model "{name}"',
            [sys.executable, "-P", "-m", "server.tasks.chat.embedded_process"],
            {
                "model_path": str((artefact.path / "model.gguf").resolve()),
                "model_name": name,
                "api_key": self._key,
                "slots": slots,
                "slot_tokens": context_tokens,
                "threads": len(os.sched_getaffinity(0)),
            },
            environment=_ENVIRONMENT,
            on_change=self._moved,
        )

    @property
    def ready(self) -> bool:
        """False while the process is being started again."""
        return self._supervisor.address is not None

    @property
    def pid(self) -> int | None:
        """The process, for whoever watches it."""
        return self._supervisor.pid

    async def start(self) -> None:
        """Return when the model is loaded. Raises ModelUnavailable if it cannot be. From the main thread only."""
        starting = asyncio.create_task(self._supervisor.start())
        try:
            # The SDK and the tokenizer take seconds, too: as long as the process takes to load the model.
            self._chat = await asyncio.to_thread(self._open_chat)
            await starting
        finally:
            starting.cancel()
        self._speak_where_it_is()

    def _open_chat(self) -> "OpenAIProvider":

        from server.tasks.chat.openai_upstream import Endpoint, OpenAIProvider, turns_of

        name = self.description.identity.name
        endpoint = Endpoint(
            EMBEDDED, "http://127.0.0.1/v1", name, self._key, is_embedded=True, token_seconds=self._token_seconds
        )
        chat = OpenAIProvider(self.description, endpoint, turns_of(self._slots), read_counter(self._artefact))
        chat.generations = self.generations
        return chat

    async def close(self) -> None:
        """End the process."""
        await self._supervisor.stop()
        if self._chat:
            await self._chat.close()

    def _moved(self) -> None:
        self._speak_where_it_is()
        self._on_change()

    def _speak_where_it_is(self) -> None:
        if self._chat and (address := self._supervisor.address):
            self._chat.move(f"http://{address}/v1")

    def _speaker(self) -> "OpenAIProvider":
        assert self._chat is not None, "it was not started"
        return self._chat

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """The number that the model itself would count."""
        return await self._speaker().prompt_tokens(messages)

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """As `OpenAIProvider.estimate`."""
        return self._speaker().estimate(messages, options)

    def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[ChatStarted | TextDelta | ChatDone, None]:
        """As `OpenAIProvider.stream`; raises ModelLoading, too, at once."""
        if not self.ready:
            raise ModelLoading(f'model "{self.description.identity.name}" is being started again', retry_after=2.0)
        return self._speaker().stream(messages, options, deadline=deadline)


def read_counter(artefact: Artefact) -> TokenizerCounter:
    """The tokenizer of an artefact with its chat template. Blocks for a second. Raises ModelUnavailable."""
    path, frame = artefact.part("tokenizer.json"), from_schema(artefact, "frame")
    try:
        return TokenizerCounter.read(path, frame)
    except (OSError, ValueError, TypeError) as error:
        raise unusable(artefact.manifest.name, "its tokenizer cannot be read") from error
