"""How engines are made and kept: a slot for each, filled in the background, closed in reverse order.

Heavy libraries are imported here, inside the builders and on one loading thread: importing and constructing hold the
GIL anyway, and the port is open meanwhile. Digests are checked beside it, on threads that only read and hash, and the
language model starts in its own process.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

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
from server.runtime.artefact import Artefact, open_artefact
from server.runtime.lanes import Lanes
from server.runtime.models import Slot
from server.settings import ModelSettings, Settings

T = TypeVar("T")

CLASSIFIERS = ("sentiment", "topics")
EMBEDDER, PRICES, LINGUIST, LANGUAGE = "embedder", "house-prices", "en_core_web_sm", "lid.176"
EMBEDDED_LLMS = {"default": "qwen2.5-coder-1.5b-instruct", "small": "smollm2-135m-instruct"}
NO_LLM = "none"


class Engines:
    """The slots of all engines. `on_change` is called whenever one of them changes its state."""

    def __init__(self, settings: Settings) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._models = settings.data / "models"
        self._lanes = Lanes(settings.lanes, settings.lane_queue)
        self._spacy_lane = Lanes(1, settings.lane_queue)  # spaCy holds the GIL: a second thread would gain nothing
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._closing = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

        added = (name for name in settings.models if name not in (*CLASSIFIERS, EMBEDDER))
        self.classifiers: dict[str, Slot[Classifier]] = {name: self._slot(name) for name in (*CLASSIFIERS, *added)}
        self.pricer: Slot[Pricer] = self._slot(PRICES)
        self.embedder: Slot[Embedder] = self._slot(EMBEDDER)
        self.linguist: Slot[Linguist] = self._slot(LINGUIST)
        self.languages: Slot[LanguageIdentifier] = self._slot(LANGUAGE)
        self.retriever: Slot[Retriever] = self._slot("collections")
        self.chat: Slot[ChatModel] = self._slot(self._chat_name())
        self.answerer: Slot[Answerer] = self._slot("answers")

    def _slot(self, name: str) -> Slot[Any]:
        return Slot(name, self._changed)

    def _changed(self) -> None:
        self.on_change()

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
        found: list[tuple[Slot[Any], ModelTask]] = [
            *((slot, ModelTask.CLASSIFICATION) for slot in self.classifiers.values()),
            (self.pricer, ModelTask.REGRESSION),
            (self.embedder, ModelTask.EMBEDDING),
            (self.linguist, ModelTask.LINGUISTICS),
            (self.languages, ModelTask.LANGUAGE_ID),
        ]
        return found if self.llm_is_off else [*found, (self.chat, ModelTask.CHAT)]

    @property
    def lanes(self) -> dict[str, Lanes]:
        """All lanes by what computes on them, for metrics."""
        return {"models": self._lanes, "spacy": self._spacy_lane}

    async def loaded(self) -> None:
        """Return when every slot was filled or has failed."""
        await asyncio.wait(self._tasks)

    @classmethod
    @asynccontextmanager
    async def create(cls, settings: Settings) -> AsyncIterator["Engines"]:
        """Empty slots; load() fills them. On leaving, loading is given up and everything is closed."""
        engines = cls(settings)
        try:
            yield engines
        finally:
            for task in engines._tasks:
                task.cancel()
            await asyncio.gather(*engines._tasks, return_exceptions=True)
            await engines._closing.aclose()
            engines._lanes.close()
            engines._spacy_lane.close()
            engines._loader.shutdown(cancel_futures=True)

    def load(self) -> None:
        """Begin to fill all slots."""
        for name, slot in self.classifiers.items():
            self._start(slot.load(partial(self._text_model, name, ModelTask.CLASSIFICATION)))
        self._start(self.pricer.load(partial(self._from_artefact, PRICES, _house_pricer)))
        self._start(self.linguist.load(self._linguist))
        self._start(self.languages.load(partial(self._from_artefact, LANGUAGE, _language_identifier)))
        embedder = self._start(self.embedder.load(partial(self._text_model, EMBEDDER, ModelTask.EMBEDDING)))
        retriever = self._start(self._after(embedder, self.retriever.load(self._retriever)))
        if self.llm_is_off:
            message = "there is no language model: QUINTET_LLM is off"
            self.chat.fail(message)
            self.answerer.fail(message)
        else:
            chat = self._start(self.chat.load(self._chat_model))
            self._start(self._after(asyncio.gather(retriever, chat), self.answerer.load(self._answerer)))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    @staticmethod
    async def _after(first: Awaitable[object], then: Awaitable[None]) -> None:
        await first
        await then

    async def _on_loader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    # ------------------------------------------------------------ builders

    async def _from_artefact(self, name: str, build: Callable[[Artefact, Lanes], T]) -> T:
        artefact = await asyncio.to_thread(open_artefact, self._models, name)
        return await self._on_loader(partial(build, artefact, self._lanes))

    async def _text_model(self, name: str, task: ModelTask) -> Any:
        wanted = self._settings.models.get(name, ModelSettings())
        if wanted.source:
            return await self._on_loader(partial(_hub_model, name, task, wanted, self._lanes))
        return await self._from_artefact(name, partial(_text_model, task, wanted))

    async def _linguist(self) -> Linguist:
        def build(artefact: Artefact, _: Lanes) -> Linguist:
            from server.engines.linguist import SpacyLinguist

            return SpacyLinguist(artefact, self._spacy_lane)

        return await self._from_artefact(LINGUIST, build)

    async def _retriever(self) -> Retriever:
        from server.engines.retriever import FaissRetriever

        retriever = FaissRetriever(self._settings.data / "index", self.embedder.get(), self._lanes)
        await retriever.open()
        return retriever

    async def _chat_model(self) -> ChatModel:
        if self._settings.llm_base_url:
            return await self._remote_chat_model()
        artefact = await asyncio.to_thread(open_artefact, self._models, self.chat.name)
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
            sentiment=self.classifiers["sentiment"].get,
            topics=self.classifiers["topics"].get,
            linguist=self.linguist.get,
            languages=self.languages.get,
        )


def _text_model(task: ModelTask, wanted: ModelSettings, artefact: Artefact, lanes: Lanes) -> Classifier | Embedder:
    embeds = task is ModelTask.EMBEDDING
    if wanted.engine == "torch":
        from server.engines import torch_text

        kind = torch_text.TorchEmbedder if embeds else torch_text.TorchClassifier
        return kind.from_artefact(artefact, lanes, wanted.device)
    from server.engines import onnx_text

    return (onnx_text.OnnxEmbedder if embeds else onnx_text.OnnxClassifier)(artefact, lanes, wanted.engine)


def _hub_model(name: str, task: ModelTask, wanted: ModelSettings, lanes: Lanes) -> Classifier | Embedder:
    from server.engines import torch_text

    kind = torch_text.TorchEmbedder if task is ModelTask.EMBEDDING else torch_text.TorchClassifier
    return kind.from_hub(name, str(wanted.source), wanted.revision, lanes, wanted.device)


def _house_pricer(artefact: Artefact, lanes: Lanes) -> Pricer:
    from server.engines.house_prices import HousePricer

    return HousePricer(artefact, lanes)


def _language_identifier(artefact: Artefact, lanes: Lanes) -> LanguageIdentifier:
    from server.engines.language import FastTextIdentifier

    return FastTextIdentifier(artefact, lanes)
