"""How engines are made and kept: a slot for each, filled in the background, closed in reverse order.

Models that come from artefacts or a hub have a plan each (`model_plans.py`) and are kept by the pool
(`runtime/pool.py`). The language model starts in its own process, and what is made of models (retriever, answerer)
follows them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from server.engines.interfaces import (
    Analyzer,
    Answerer,
    ChatModel,
    Classifier,
    Embedder,
    LanguageIdentifier,
    Linguist,
    ModelDescription,
    ModelIdentity,
    ModelTask,
    Pricer,
    Retriever,
)
from server.model_plans import EMBEDDER, LANGUAGE, LINGUIST, PRICES, RERANKER, plans
from server.runtime import memory
from server.runtime.artefact import open_artefact
from server.runtime.lanes import Lanes
from server.runtime.models import ModelSlot, Slot
from server.runtime.pool import Pool
from server.runtime.registry import open_registry
from server.runtime.watch import follow, sync
from server.settings import Settings

EMBEDDED_LLMS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}
NO_LLM = "none"
_START_SECONDS = 600.0


class Engines:
    """The slots of all engines. `on_change` is called whenever one of them changes its state."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.pool = pool
        self._settings = settings
        self._lanes = Lanes(settings.lanes, settings.lane_queue)
        self._spacy_lane = Lanes(1, settings.lane_queue)  # spaCy holds the GIL: a second thread would gain nothing
        self._closing = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: list[asyncio.Task[None]] = []
        self._searched_with: ModelIdentity | None = None  # the embedder that the retriever was opened with

        pool.on_change = self._changed
        self._models = {
            plan.name: (pool.add(plan), task) for task, plan in plans(settings, self._lanes, self._spacy_lane)
        }
        self.classifiers: dict[str, ModelSlot[Classifier]] = {
            name: slot for name, (slot, task) in self._models.items() if task is ModelTask.CLASSIFICATION
        }
        self.pricer: ModelSlot[Pricer] = self._models[PRICES][0]
        self.embedder: ModelSlot[Embedder] = self._models[EMBEDDER][0]
        self.linguist: ModelSlot[Linguist] = self._models[LINGUIST][0]
        self.languages: ModelSlot[LanguageIdentifier] = self._models[LANGUAGE][0]
        self.retriever: Slot[Retriever] = Slot("collections", self._changed)
        self.chat: Slot[ChatModel] = Slot(self._chat_name(), self._changed)
        self.answerer: Slot[Answerer] = Slot("answers", self._changed)

    def _changed(self) -> None:
        self.on_change()
        embedder = self.embedder.loaded
        if embedder and self._searched_with and embedder.description.identity != self._searched_with:
            self._searched_with = None
            self._start(self._reopen())

    def _chat_name(self) -> str:
        if self._settings.llm_base_url:
            return self._settings.llm_model or NO_LLM
        return EMBEDDED_LLMS.get(self._settings.llm, NO_LLM)

    @property
    def llm_is_off(self) -> bool:
        """True if the settings ask for no language model."""
        return self.chat.name == NO_LLM

    @property
    def models(self) -> list[tuple[Slot[Any], ModelTask]]:
        """The slots that hold a model, with what it does."""
        found: list[tuple[Slot[Any], ModelTask]] = list(self._models.values())
        return found if self.llm_is_off else [*found, (self.chat, ModelTask.CHAT)]

    @property
    def lanes(self) -> dict[str, Lanes]:
        """All lanes by what computes on them, for metrics."""
        return {"models": self._lanes, "spacy": self._spacy_lane}

    async def loaded(self) -> None:
        """Return when everything that is loaded at the start was loaded or has failed."""
        await asyncio.wait(self._loading)

    @classmethod
    @asynccontextmanager
    async def create(cls, settings: Settings) -> AsyncIterator["Engines"]:
        """Empty slots; load() fills them. On leaving, loading is given up and everything is closed."""
        registry = open_registry(settings.data / "models", settings.registry)
        async with Pool.running(registry, settings.memory_budget) as pool:
            engines = cls(settings, pool)
            try:
                yield engines
            finally:
                for task in engines._tasks:
                    task.cancel()
                await asyncio.gather(*engines._tasks, return_exceptions=True)
                if collections := engines.retriever.loaded:
                    await collections.close()
                await engines._closing.aclose()
                engines._lanes.close()
                engines._spacy_lane.close()

    def load(self) -> None:
        """Begin to fill all slots, and to follow what others change."""
        synced = self._start(sync(self.pool))
        models = self._start(self._after(synced, self.pool.preload()))
        retriever = self._start(self._after(synced, self.retriever.load(self._retriever)))
        self._loading += [models, retriever]
        versioned = [name for name, plan in self.pool.plans.items() if plan.has_artefact]
        self._start(self._after(synced, follow(self.pool, self.pool.store.marks(versioned))))
        if self.llm_is_off:
            message = "there is no language model: QUINTET_LLM is off"
            self.chat.fail(message)
            self.answerer.fail(message)
        else:
            chat = self._start(self.chat.load(self._chat_model))
            both = asyncio.gather(retriever, chat)
            self._loading += [chat, self._start(self._after(both, self.answerer.load(self._answerer)))]

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

    async def _retriever(self) -> Retriever:
        from server.engines.leased import LeasedEmbedder, LeasedReranker
        from server.engines.retriever import FaissRetriever

        async with self.embedder.use(_whenever()) as engine:
            embedder = LeasedEmbedder(self.embedder, engine.description)
        index = self._settings.data / "index"
        if self._settings.rerank:
            from server.engines.reranking import RerankingRetriever

            reranker = LeasedReranker(self._models[RERANKER][0])
            retriever: FaissRetriever = RerankingRetriever(index, embedder, self._lanes, reranker)
        else:
            retriever = FaissRetriever(index, embedder, self._lanes)
        await retriever.open()
        self._searched_with = embedder.description.identity
        return retriever

    async def _reopen(self) -> None:
        """Another embedder is served: the collections that fit it are found anew."""
        self.retriever.pause("the embedder was replaced; the collections are being opened again")
        if old := self.retriever.loaded:
            await old.close()
        await self.retriever.load(self._retriever)
        if self.answerer.loaded:
            await self.answerer.load(self._answerer)

    async def _chat_model(self) -> ChatModel:
        if self._settings.llm_base_url:
            return await self._remote_chat_model()
        artefact = await asyncio.to_thread(open_artefact, self._settings.data / "models", self.chat.name)
        await self.pool.residency.charge(self.chat.name, artefact.manifest.size_bytes)
        from server.engines.embedded_llm import EmbeddedChatModel

        model = EmbeddedChatModel(
            artefact,
            slots=self._settings.llm_slots,
            context_tokens=self._settings.llm_context_tokens,
            token_seconds=self._settings.llm_timeout_seconds,
            on_change=lambda: self._follow_chat(model.ready),
        )
        self._closing.push_async_callback(model.close)
        await model.start()
        self.pool.residency.budget.hold(self.chat.name, memory.resident_bytes(model.pid))
        return model

    def _follow_chat(self, ready: bool) -> None:
        for slot in (self.chat, self.answerer):
            if ready:
                slot.resume()
            else:
                slot.pause(f'model "{self.chat.name}" is being started again')

    async def _remote_chat_model(self) -> ChatModel:
        from server.engines.chat import Endpoint, OpenAIChatModel

        settings = self._settings
        description = ModelDescription(
            identity=ModelIdentity(self.chat.name, "", ""),
            task=ModelTask.CHAT,
            engine="openai",
            max_input_tokens=settings.llm_context_tokens,
        )
        endpoint = Endpoint(str(settings.llm_base_url), self.chat.name, settings.read_llm_api_key())
        model = OpenAIChatModel(
            description, endpoint, slots=settings.max_concurrent_calls, token_seconds=settings.llm_timeout_seconds
        )
        self._closing.push_async_callback(model.close)
        return model

    async def _answerer(self) -> Answerer:
        from server.engines.answerer import RagAnswerer

        return RagAnswerer(self.retriever.get(), self.chat.get())

    def analyzer(self) -> Analyzer:
        """It looks its models up on every call, so it is there from the start."""
        from server.engines.analysis import SideBySideAnalyzer

        return SideBySideAnalyzer(
            sentiment=self.classifiers["sentiment"].use,
            topics=self.classifiers["topics"].use,
            linguist=self.linguist.use,
            languages=self.languages.use,
        )


def _whenever() -> float:
    """A deadline for what is loaded at the start, where nobody waits."""
    return time.monotonic() + _START_SECONDS
