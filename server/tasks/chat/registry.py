"""What callers can name as a chat model: a handle for every route and every model, filled in the background."""

import asyncio
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from server.domain.chat import ChatModel
from server.domain.errors import ModelUnavailable
from server.domain.models import ModelTask
from server.domain.supervision import supervised
from server.domain.threads import on_thread
from server.domain.usage import Ledger
from server.models import process_memory
from server.models.artefact import open_artefact
from server.models.handle import Handle, State, explain
from server.models.manager import ModelManager
from server.models.store import Mark
from server.tasks.chat.api_keys import KeyFile
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.configuration import read_routes
from server.tasks.chat.embedded import EmbeddedModel
from server.tasks.chat.providers_file import EMBEDDED
from server.tasks.chat.router import Router

if TYPE_CHECKING:
    from server.settings import Settings
    from server.tasks.chat.openai_upstream import Upstream

_LOOK_SECONDS = 1.0  # between looks at the embedded model's folder while something is missing
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 5.0, 300.0  # until it is tried again without a change there


class ChatModels:
    """`handles` has everything that callers can name, the default first; start() begins to fill them. `upstreams` are
    those that could be made, by "provider/model" or "embedded". Raises BadFile.
    """

    def __init__(self, settings: "Settings", manager: ModelManager, ledger: Ledger) -> None:
        self._settings = settings
        self._artefacts = settings.data / "models"
        self._ledger = ledger
        self._manager = manager
        self._config = read_routes(settings)
        self.handles: dict[str, Handle[ChatModel]] = {
            name: Handle(name, manager.changed, ModelTask.CHAT) for name in self._config.names or ("none",)
        }
        self.upstreams: dict[str, Upstream] = {}
        self._breakers: dict[str, CircuitBreaker] = {}  # by provider
        self._missing: dict[str, str] = {}  # why other upstreams could not be made
        self._routers: dict[str, Router] = {}
        self._closing = AsyncExitStack()
        self._loading: asyncio.Task[None] | None = None

    @property
    def key_files(self) -> Sequence[KeyFile]:
        """The files with API keys of providers, to be followed."""
        return [key for key in self._config.keys.values() if isinstance(key, KeyFile)]

    @property
    def default(self) -> Handle[ChatModel]:
        """The handle for requests that name no model."""
        return next(iter(self.handles.values()))

    @property
    def is_off(self) -> bool:
        """True if the settings ask for no language model."""
        return not self._config.names

    async def load(self) -> None:
        """Fill all handles, first those that need not wait for the embedded model. A route does without an upstream
        that could not be made, unless it has no other.
        """
        if self.is_off:
            # As the settings ask, so it is not logged as an error.
            self.default.move(State.FAILED, "there is no language model: QUINTET_LLM is off")
            return
        await self._try_providers()
        await self._fill(name for name, refs in self._config.names.items() if EMBEDDED not in refs)
        if late := self._users({EMBEDDED}):
            await self._try_embedded()
            await self._fill(late)

    def start(self) -> None:
        """Begin to load, and try again what cannot be used."""
        self._loading = supervised("chat models", self._load_and_heal)

    async def close(self) -> None:
        """Give up loading, end the embedded model's process and close all connections."""
        if self._loading:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._closing.aclose()

    async def _load_and_heal(self) -> None:
        mark, delay = await self._mark(), _FIRST_RETRY_SECONDS  # before loading, so that no change is missed
        await self.load()
        due = time.monotonic() + delay
        while self._missing:
            await asyncio.sleep(_LOOK_SECONDS)
            before, mark = mark, await self._mark()
            if mark != before or time.monotonic() > due:
                missing = self._missing
                await self._try_providers()
                if EMBEDDED in missing:
                    await self._try_embedded()
                if missing != self._missing:
                    await self._fill(self._users(missing))
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
                due = time.monotonic() + delay

    async def _mark(self) -> Mark | None:
        return await on_thread("reader", partial(self._manager.store.mark, self._config.embedded))

    def _users(self, upstreams: Container[str]) -> list[str]:
        """The handles that use one of these upstreams."""
        return [name for name, refs in self._config.names.items() if any(ref in upstreams for ref in refs)]

    async def _try_providers(self) -> None:
        """Make the upstreams of providers that are not made yet; `_missing` says why others could not be."""
        refs = [ref for refs in self._config.names.values() for ref in refs if ref != EMBEDDED]
        if self.upstreams.keys() >= set(refs):
            return
        try:
            found, missing = await on_thread("providers", self._make_upstreams)
        except Exception as error:
            found, missing = {}, dict.fromkeys(refs, explain("providers", error))
        for upstream in found.values():
            self._closing.push_async_callback(upstream.endpoint.client.close)
        self.upstreams |= found
        self._missing = {**{ref: why for ref, why in self._missing.items() if ref == EMBEDDED}, **missing}

    def _make_upstreams(self) -> "tuple[dict[str, Upstream], dict[str, str]]":
        from server.tasks.chat.upstreams import provider_upstreams  # it imports the SDK, which takes a second

        return provider_upstreams(self._config, self._artefacts, self._breaker, self.upstreams)

    async def _try_embedded(self) -> None:
        """Load the embedded model; `_missing` says why it could not be."""
        try:
            await self._load_embedded()
        except Exception as error:
            self._missing = {**self._missing, EMBEDDED: explain(self._config.embedded, error)}

    async def _load_embedded(self) -> None:
        """Raises ModelUnavailable and ModelDoesNotFit."""
        settings, name = self._settings, self._config.embedded
        artefact = await on_thread("reader", partial(open_artefact, self._artefacts, name))
        await self._manager.reserve_memory(name, artefact.manifest.size_bytes)
        embedded = EmbeddedModel(
            artefact,
            self._breaker(EMBEDDED),
            slots=settings.llm_slots,
            context_tokens=settings.llm_context_tokens,
            token_seconds=settings.llm_timeout_seconds,
            on_change=self._update,
        )
        try:
            upstream = await embedded.start()
        except BaseException:
            await embedded.close()
            self._manager.memory.held.pop(name, None)
            raise
        self._closing.push_async_callback(embedded.close)
        self.upstreams[EMBEDDED] = upstream
        self._missing = {ref: why for ref, why in self._missing.items() if ref != EMBEDDED}
        self._manager.memory.held[name] = process_memory.resident_bytes(embedded.supervisor.pid)

    async def _fill(self, names: Iterable[str]) -> None:
        for name in names:
            await self.handles[name].load(partial(self._router, name))
        self._update()

    async def _router(self, name: str) -> ChatModel:
        refs = self._config.names[name]
        upstreams = [self.upstreams[ref] for ref in refs if ref in self.upstreams]
        missing = "; ".join(self._missing[ref] for ref in refs if ref in self._missing)
        if not upstreams:
            raise ModelUnavailable(missing, metadata={"model": name})
        self._routers[name] = router = Router(name, upstreams, self._ledger, missing)
        return router

    def _update(self) -> None:
        """Set the handles to which upstreams can be asked now."""
        for name, router in self._routers.items():
            handle, remark = self.handles[name], router.remark()
            state = State.READY if router.is_available else State.LOADING
            if handle.loaded is not None and (handle.state, handle.message) != (state, remark):
                # Providers recover without this server; its own process does not.
                is_away = state is State.LOADING and EMBEDDED not in self._config.names[name]
                handle.move(state, remark, is_away=is_away)

    def _breaker(self, provider: str) -> CircuitBreaker:
        """The provider's, or "embedded"'s."""
        if found := self._breakers.get(provider):
            return found

        def changed() -> None:
            if breaker.seconds_left:  # it becomes half open without an event
                asyncio.get_running_loop().call_later(breaker.seconds_left + 0.01, self._update)
            self._update()

        self._breakers[provider] = breaker = CircuitBreaker(provider, on_change=changed)
        return breaker
