"""Models of providers, made from what the settings say."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.models import process_memory
from server.models.artefact import open_artefact, open_part
from server.models.manager import ModelManager
from server.settings import Settings
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.configuration import Lineup
from server.tasks.chat.embedded import EMBEDDED, EmbeddedProvider
from server.tasks.chat.providers_file import Azure, Model, OpenAI
from server.tasks.chat.router import Upstream
from server.tasks.chat.tokens import ByteCounter, TokenCounter, TokenizerCounter

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Endpoint


class Legs:
    """Makes them. `breaker_of` gives a provider's breaker; what is opened is closed by `closing`."""

    def __init__(
        self, settings: Settings, lineup: Lineup, breaker_of: Callable[[str], CircuitBreaker], closing: AsyncExitStack
    ) -> None:
        self._settings = settings
        self._lineup = lineup
        self._breaker_of = breaker_of
        self._closing = closing

    async def remote(self) -> dict[str, Upstream]:
        """Those of the file or of the one endpoint, by "provider/model". Raises ModelUnavailable for a tokenizer
        that cannot be read.

        Who brings no tokenizer is counted with the embedded model's if it is published, else by bytes.
        """
        config, legs = self._lineup.config, dict[str, Upstream]()
        if not config.providers:
            return legs
        await asyncio.to_thread(import_module, "server.tasks.chat.openai_upstream")  # the SDK takes a second
        from server.tasks.chat.openai_upstream import OpenAIProvider, turns_of

        other = await asyncio.to_thread(self._published_counter)
        for name, provider in config.providers.items():
            turns, breaker = turns_of(provider.concurrency), self._breaker_of(name)
            for model_name, model in provider.models.items():
                ref = f"{name}/{model_name}"
                label = ref if ref in self._lineup.names else model_name
                engine = "azure" if isinstance(provider, Azure) else "openai"
                description = ModelDescription(
                    ModelIdentity(label, "", ""), ModelTask.CHAT, engine, max_input_tokens=model.context_tokens
                )
                counter = await asyncio.to_thread(self._own_counter, ref, model) or other
                endpoint = self._endpoint(name, provider, model_name, model)
                # Each client reads the certificates of all authorities, which takes a while.
                chat = await asyncio.to_thread(OpenAIProvider, description, endpoint, turns, counter)
                self._closing.push_async_callback(chat.close)
                legs[ref] = Upstream(chat, breaker)
        return legs

    async def embedded(self, manager: ModelManager, on_change: Callable[[], None]) -> Upstream:
        """The embedded model's, once its process answers. Raises ModelUnavailable and ModelDoesNotFit."""
        settings, name = self._settings, self._lineup.embedded
        artefact = await asyncio.to_thread(open_artefact, settings.data / "models", name)
        await manager.reserve_memory(name, artefact.manifest.size_bytes)
        chat = EmbeddedProvider(
            artefact,
            slots=settings.llm_slots,
            context_tokens=settings.llm_context_tokens,
            token_seconds=settings.llm_timeout_seconds,
            on_change=on_change,
        )
        self._closing.push_async_callback(chat.close)
        await chat.start()
        manager.memory.hold(name, process_memory.resident_bytes(chat.pid))
        return Upstream(chat, self._breaker_of(EMBEDDED), lambda: chat.ready)

    def _endpoint(self, name: str, provider: OpenAI | Azure, model_name: str, model: Model) -> "Endpoint":
        from server.tasks.chat.openai_upstream import Endpoint

        return Endpoint(
            name,
            provider.endpoint if isinstance(provider, Azure) else provider.base_url,
            model.deployment or model_name,
            self._lineup.keys[name],
            {header: value.get_secret_value() for header, value in provider.headers.items()},
            self._lineup.config.prices(model),
            azure_api_version=provider.api_version if isinstance(provider, Azure) else "",
            connect_seconds=provider.connect_seconds,
            token_seconds=provider.token_seconds,
        )

    def _own_counter(self, ref: str, model: Model) -> TokenCounter | None:
        if model.tokenizer is None:
            return None
        try:
            return TokenizerCounter.read(self._lineup.config.folder / model.tokenizer.expanduser())
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f'the tokenizer of "{ref}" cannot be read; see QUINTET_PROVIDERS') from error

    def _published_counter(self) -> TokenCounter:
        try:
            part = open_part(self._settings.data / "models", self._lineup.embedded, "tokenizer.json")
            return TokenizerCounter.read(part)
        except (OSError, ValueError, ModelUnavailable):
            return ByteCounter()
