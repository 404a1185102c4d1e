"""What callers can name as a chat model: a slot for every route and every model, filled in the background."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from server.domain.chat import ChatModel
from server.domain.errors import ModelUnavailable
from server.domain.models import ModelTask
from server.domain.usage import Ledger
from server.models.handle import Handle, State, explain
from server.models.manager import ModelManager
from server.settings import Settings
from server.tasks.chat.circuit_breaker import CircuitBreaker
from server.tasks.chat.configuration import lineup
from server.tasks.chat.providers_file import EMBEDDED

if TYPE_CHECKING:
    from server.tasks.chat.router import Router, Upstream

NO_LLM = "none"


class Chats:
    """`slots` has everything that callers name, the default first; load() fills them. `legs` are the models of
    providers that could be had, by "provider/model". Raises BadProviders.
    """

    def __init__(self, settings: Settings, manager: ModelManager, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._manager = manager
        self._lineup = lineup(settings)
        self.slots: dict[str, Handle[ChatModel]] = {
            name: Handle(name, manager.changed, ModelTask.CHAT) for name in self._lineup.names or (NO_LLM,)
        }
        self.legs: dict[str, Upstream] = {}
        self._missing: dict[str, str] = {}  # why others could not be had
        self._routes: dict[str, Router] = {}
        self._closing = AsyncExitStack()
        self._loading: asyncio.Task[None] | None = None

    @property
    def default(self) -> Handle[ChatModel]:
        """The slot for those who name none."""
        return next(iter(self.slots.values()))

    @property
    def is_off(self) -> bool:
        """True if the settings ask for no language model."""
        return not self._lineup.names

    async def load(self) -> None:
        """Fill all slots, first those that need not wait for the embedded model. A route does without a model that
        cannot be had, unless it has no other.
        """
        if self.is_off:
            # Wanted so, and no error of the log.
            self.default.move(State.FAILED, "there is no language model: QUINTET_LLM is off")
            return
        from server.tasks.chat.upstreams import Legs

        legs = Legs(self._settings, self._lineup, self._breaker, self._closing)
        try:
            self.legs |= await legs.remote()
        except Exception as error:
            why = explain("providers", error)
            self._missing |= {ref: why for refs in self._lineup.names.values() for ref in refs if ref != EMBEDDED}
        late = [name for name, refs in self._lineup.names.items() if EMBEDDED in refs]
        await self._fill(name for name in self.slots if name not in late)
        if late:
            try:
                self.legs[EMBEDDED] = await legs.embedded(self._manager, self._follow)
            except Exception as error:
                self._missing[EMBEDDED] = explain(self._lineup.embedded, error)
            await self._fill(late)

    def start(self) -> None:
        """Begin to load."""
        self._loading = asyncio.create_task(self.load())

    async def loaded(self) -> None:
        """Return when every model was loaded or has failed."""
        if self._loading:
            await asyncio.wait({self._loading})

    async def close(self) -> None:
        """Give up loading, end the embedded model's process and close all connections."""
        if self._loading:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._closing.aclose()

    async def _fill(self, names: Iterable[str]) -> None:
        for name in names:
            await self.slots[name].load(partial(self._model, name))
        self._follow()

    async def _model(self, name: str) -> ChatModel:
        from server.tasks.chat.accounting import AccountedChatModel
        from server.tasks.chat.router import Router

        refs = self._lineup.names[name]
        legs = [self.legs[ref] for ref in refs if ref in self.legs]
        missing = "; ".join(self._missing[ref] for ref in refs if ref in self._missing)
        if not legs:
            raise ModelUnavailable(missing, metadata={"model": name})
        self._routes[name] = route = Router(name, legs, missing)
        return AccountedChatModel(route, self._ledger)

    def _follow(self) -> None:
        """Tell the slots whom they can ask now."""
        for name, route in self._routes.items():
            slot, remark = self.slots[name], route.remark()
            if route.is_available:
                slot.resume()
                if slot.state is State.READY and slot.message != remark:
                    slot.move(State.READY, remark)
            else:
                slot.pause(remark)

    def _breaker(self, provider: str) -> CircuitBreaker:
        breaker = CircuitBreaker(provider)

        def follow() -> None:
            if breaker.seconds_left:  # no call tells when the time is over
                asyncio.get_running_loop().call_later(breaker.seconds_left + 0.01, self._follow)
            self._follow()

        breaker.on_change = follow
        return breaker
