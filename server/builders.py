"""How engines are made and kept: a slot for each, filled in the background, closed in reverse order.

Models that come from artefacts or a hub have a plan each (`model_plans.py`) and are kept by the pool
(`models/manager.py`), language models by `chats.py`; what is made of models (retriever, answerer) follows them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from server.domain.analysis import LanguageIdentifier, TextParser
from server.domain.chat import ChatModel
from server.domain.models import ModelIdentity, ModelTask
from server.domain.pricing import Pricer
from server.domain.texts import Classifier, Embedder
from server.domain.usage import Ledger
from server.inference.scheduler import Scheduler
from server.model_plans import EMBEDDER, LANGUAGE, PARSER, PRICES, RERANKER, plans
from server.models import process_memory
from server.models.handle import Handle, Slot, State
from server.models.manager import ModelManager
from server.models.registry import open_registry
from server.models.watch import follow, sync
from server.settings import Settings
from server.tasks.analysis.analyzer import Analyzer
from server.tasks.chat.configuration import ChatSettings
from server.tasks.chat.registry import ChatModels

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Upstream
    from server.tasks.rag.answerer import Answerer
    from server.tasks.rag.engine import RagEngine

_START_SECONDS = 600.0


class Engines:
    """The slots of all engines. `on_change` is called whenever one of them changes its state."""

    def __init__(self, settings: Settings, pool: ModelManager, ledger: Ledger) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.pool = pool
        self._settings = settings
        self._lanes = Scheduler(settings.lanes, settings.lane_queue)
        self._spacy_lane = Scheduler(1, settings.lane_queue)  # spaCy holds the GIL: a second thread would gain nothing
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: list[asyncio.Task[None]] = []
        self._searched_with: ModelIdentity | None = None  # the embedder that the retriever was opened with

        pool.on_change = self._changed
        self._models = {
            plan.name: (pool.add(plan), task) for task, plan in plans(settings, self._lanes, self._spacy_lane)
        }
        self.classifiers: dict[str, Handle[Classifier]] = {
            name: slot for name, (slot, task) in self._models.items() if task is ModelTask.CLASSIFICATION
        }
        self.pricer: Handle[Pricer] = self._models[PRICES][0]
        self.embedder: Handle[Embedder] = self._models[EMBEDDER][0]
        self.parser: Handle[TextParser] = self._models[PARSER][0]
        self.languages: Handle[LanguageIdentifier] = self._models[LANGUAGE][0]
        self.collections: Slot[RagEngine] = Slot("collections", self._changed)
        self._chats = ChatModels(chat_settings(settings), pool, ledger, self._changed)
        self.chat: Slot[ChatModel] = self._chats.default
        self.answerer: Slot[Answerer] = Slot("answers", self._changed)

    def _changed(self) -> None:
        self.on_change()
        embedder = self.embedder.loaded
        if embedder and self._searched_with and embedder.description.identity != self._searched_with:
            self._searched_with = None
            self._start(self._reopen())

    @property
    def chats(self) -> dict[str, Slot[ChatModel]]:
        """Routes and chat models by the names that callers use, the default first."""
        return self._chats.handles

    @property
    def upstreams(self) -> "Mapping[str, Upstream]":
        """Models of providers, for metrics."""
        return self._chats.upstreams

    @property
    def llm_is_off(self) -> bool:
        """True if the settings ask for no language model."""
        return self._chats.is_off

    @property
    def models(self) -> list[tuple[Slot[Any], ModelTask]]:
        """The slots that hold a model, with what it does."""
        found: list[tuple[Slot[Any], ModelTask]] = list(self._models.values())
        return found if self.llm_is_off else [*found, *((slot, ModelTask.CHAT) for slot in self.chats.values())]

    @property
    def lanes(self) -> dict[str, Scheduler]:
        """All lanes by what computes on them, for metrics."""
        return {"models": self._lanes, "spacy": self._spacy_lane}

    async def loaded(self) -> None:
        """Return when everything that is loaded at the start was loaded or has failed."""
        await asyncio.wait(self._loading)

    @classmethod
    @asynccontextmanager
    async def create(cls, settings: Settings, ledger: Ledger) -> AsyncIterator["Engines"]:
        """Empty slots; load() fills them. On leaving, loading is given up and everything is closed."""
        registry = open_registry(settings.data / "models", settings.registry)
        async with ModelManager.running(registry, settings.memory_budget) as pool:
            engines = cls(settings, pool, ledger)
            try:
                yield engines
            finally:
                for task in engines._tasks:
                    task.cancel()
                await asyncio.gather(*engines._tasks, return_exceptions=True)
                if collections := engines.collections.loaded:
                    await collections.close()
                await engines._chats.close()
                engines._lanes.close()
                engines._spacy_lane.close()

    def load(self) -> None:
        """Begin to fill all slots, and to follow what others change."""
        synced = self._start(sync(self.pool))
        models = self._start(self._after(synced, self.pool.preload()))
        retriever = self._start(self._after(synced, self.collections.load(self._collections)))
        self._loading += [models, retriever]
        versioned = [name for name, plan in self.pool.plans.items() if plan.has_artefact]
        self._start(self._after(synced, follow(self.pool, self.pool.store.marks(versioned))))
        chat = self._start(self._chats.load())
        if self.llm_is_off:
            message = "there is no language model: QUINTET_LLM is off"
            self.answerer.move(State.FAILED, message)  # wanted so, and no error of the log
        else:
            both = asyncio.gather(retriever, chat)
            self._loading += [chat, self._start(self._after(both, self.answerer.load(self._answerer)))]
        self._start(self._settle())

    async def _settle(self) -> None:
        """The libraries that were imported meanwhile are 50,000 objects, and a collection of them takes 20 ms."""
        await self.loaded()
        process_memory.freeze()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    async def _after(first: Awaitable[object], then: Awaitable[None]) -> None:
        await first
        await then

    # ------------------------------------------------------------ what is made of models

    async def _collections(self) -> "RagEngine":
        from server.models.handle_engines import HandleEmbedder, HandleReranker
        from server.tasks.rag.engine import RagEngine

        async with self.embedder.use(_whenever()) as loaded:
            embedder = HandleEmbedder(self.embedder, loaded.description)
        reranker = HandleReranker(self._models[RERANKER][0]) if self._settings.rerank else None
        engine = RagEngine(self._settings.data / "index", embedder, self._lanes, reranker)
        await engine.open()
        self._searched_with = engine.embedder
        return engine

    async def _reopen(self) -> None:
        """Another embedder is served: the collections that fit it are found anew."""
        self.collections.pause("the embedder was replaced; the collections are being opened again")
        if old := self.collections.loaded:
            await old.close()
        await self.collections.load(self._collections)
        if self.answerer.loaded:
            await self.answerer.load(self._answerer)

    async def _answerer(self) -> "Answerer":
        from server.tasks.rag.answerer import Answerer

        return Answerer(self.collections.get().retriever, self.chat.get())

    def analyzer(self) -> Analyzer:
        """It looks its models up on every call, so it is there from the start."""
        return Analyzer(
            sentiment=self.classifiers["sentiment"].use,
            topics=self.classifiers["topics"].use,
            parser=self.parser.use,
            languages=self.languages.use,
        )


def _whenever() -> float:
    """A deadline for what is loaded at the start, where nobody waits."""
    return time.monotonic() + _START_SECONDS


def chat_settings(settings: Settings) -> ChatSettings:
    """The settings that concern language models."""
    return ChatSettings(
        models=settings.data / "models",
        llm=settings.llm,
        providers=settings.providers,
        base_url=settings.llm_base_url,
        api_key=settings.read_llm_api_key() if settings.llm_base_url else "none",
        model=settings.llm_model,
        context_tokens=settings.llm_context_tokens,
        slots=settings.llm_slots,
        timeout_seconds=settings.llm_timeout_seconds,
        concurrency=settings.max_concurrent_calls,
    )
