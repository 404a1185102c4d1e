"""Analysis: results as they come, failures kept apart, one parse, and nothing left running."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from server.domain.analysis import AnalysisTask, Entity, KeyPhrase, ParsedText, TaskFailed, TaskResult, TextSpan, Token
from server.domain.errors import DeadlineExceeded, ModelLoading, ModelUnavailable, QuintetError, ServerOverloaded
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.domain.texts import Classification, Classifier, Label
from server.inference.scheduler import Scheduler
from server.models.artefact import open_artefact
from server.tasks.analysis.analyzer import Analyzer
from server.tasks.analysis.language import FastTextIdentifier
from server.tasks.analysis.spacy_parser import SpacyParser
from tests.small_artefacts import onnx_classifier, soon
from tests.waiting import until

T = TypeVar("T")
ALL = frozenset(AnalysisTask)
TEXT = "Ann lives in Paris."
PARSED = ParsedText(
    entities=(Entity("Paris", 13, 18, "GPE"),),
    key_phrases=(KeyPhrase("Paris", 13, 18, 1.0, 1),),
    sentences=(TextSpan(TEXT, 0, 19),),
    tokens=(Token("Ann", 0, 3, "Ann", "PROPN", "NNP", "ROOT", 0),),
)


@dataclass
class Engine:
    """Every engine that an analysis needs. It answers once `gate` is open, or fails."""

    name: str
    gate: asyncio.Event | None = None
    error: Exception | None = None
    calls: int = 0
    cancelled: int = 0
    description: ModelDescription = field(init=False)

    def __post_init__(self) -> None:
        identity = ModelIdentity(self.name, "1", "sha256:0")
        self.description = ModelDescription(identity, ModelTask.CLASSIFICATION, "test")

    async def _work(self) -> None:
        self.calls += 1
        try:
            if self.gate:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error

    async def classify(self, texts: Sequence[str], *, deadline: float) -> list[Classification]:
        await self._work()
        return [Classification((Label(self.name, 1.0),), truncated=False) for _ in texts]

    async def parse(self, text: str, *, deadline: float) -> ParsedText:
        await self._work()
        return PARSED

    async def identify(self, text: str, *, deadline: float) -> tuple[Label, ...]:
        await self._work()
        return (Label("en", 1.0),)


def always(engine: T) -> Callable[[float], AbstractAsyncContextManager[T]]:
    """As Handle.use() of a model that is in memory."""
    return lambda deadline: nullcontext(engine)


@dataclass
class Bench:
    """An analyzer and the engines behind it."""

    sentiment: Engine = field(default_factory=lambda: Engine("sentiment"))
    topics: Engine = field(default_factory=lambda: Engine("topics"))
    parser: Engine = field(default_factory=lambda: Engine("parser"))
    languages: Engine = field(default_factory=lambda: Engine("languages"))

    @property
    def engines(self) -> tuple[Engine, ...]:
        return self.sentiment, self.topics, self.parser, self.languages

    def analyzer(self) -> Analyzer:
        return Analyzer(
            sentiment=always(self.sentiment),
            topics=always(self.topics),
            parser=always(self.parser),
            languages=always(self.languages),
        )


async def analyse(
    analyzer: Analyzer, tasks: frozenset[AnalysisTask] = ALL, text: str = TEXT
) -> list[TaskResult | TaskFailed]:
    return [item async for item in analyzer.stream(text, tasks, deadline=soon())]


async def test_every_task_gets_one_result_with_its_model() -> None:
    bench = Bench()
    results = await analyse(bench.analyzer())
    assert {item.task for item in results} == ALL
    assert len(results) == len(ALL)
    found = {item.task: item for item in results if isinstance(item, TaskResult)}
    assert found[AnalysisTask.ENTITIES].value == PARSED.entities
    assert found[AnalysisTask.KEY_PHRASES].value == PARSED.key_phrases
    assert found[AnalysisTask.SENTENCES].value == PARSED.sentences
    assert found[AnalysisTask.SYNTAX].value == PARSED.tokens
    assert found[AnalysisTask.LANGUAGE].value == (Label("en", 1.0),)
    assert found[AnalysisTask.TOPICS].value == Classification((Label("topics", 1.0),), truncated=False)
    assert {task.name: item.model.name for task, item in found.items()} == {
        "ENTITIES": "parser",
        "SENTIMENT": "sentiment",
        "TOPICS": "topics",
        "LANGUAGE": "languages",
        "KEY_PHRASES": "parser",
        "SENTENCES": "parser",
        "SYNTAX": "parser",
    }
    assert bench.parser.calls == 1, "one parse serves four tasks"


@pytest.mark.parametrize("task", list(AnalysisTask))
async def test_only_what_is_asked_for_is_done(task: AnalysisTask) -> None:
    bench = Bench()
    (result,) = await analyse(bench.analyzer(), frozenset({task}))
    assert result.task is task
    assert sum(engine.calls for engine in bench.engines) == 1


async def test_results_come_as_they_are_ready_and_side_by_side() -> None:
    gates = {task: asyncio.Event() for task in (AnalysisTask.SENTIMENT, AnalysisTask.TOPICS)}
    bench = Bench(
        sentiment=Engine("s", gates[AnalysisTask.SENTIMENT]),
        topics=Engine("t", gates[AnalysisTask.TOPICS]),
        parser=Engine("l", asyncio.Event()),
    )
    async with aclosing(bench.analyzer().stream(TEXT, ALL, deadline=soon())) as results:
        assert (await anext(results)).task is AnalysisTask.LANGUAGE
        assert [engine.calls for engine in bench.engines] == [1, 1, 1, 1], "the others did not begin"
        for task in (AnalysisTask.TOPICS, AnalysisTask.SENTIMENT):
            gates[task].set()
            assert (await anext(results)).task is task


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (ModelUnavailable("broken"), "MODEL_UNAVAILABLE", "broken"),
        (ServerOverloaded("full"), "SERVER_OVERLOADED", "full"),
        (DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "late"),
        (RuntimeError("secret"), "INTERNAL", "an internal error; the server's log has the details"),
    ],
)
async def test_a_task_that_fails_does_not_lose_the_others(
    error: Exception, reason: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = await analyse(Bench(parser=Engine("l", error=error)).analyzer())
    failed = [item for item in results if isinstance(item, TaskFailed)]
    assert {item.task.name for item in failed} == {"ENTITIES", "KEY_PHRASES", "SENTENCES", "SYNTAX"}
    assert {(item.reason, item.message) for item in failed} == {(reason, message)}
    assert {item.task.name for item in results if isinstance(item, TaskResult)} == {"SENTIMENT", "TOPICS", "LANGUAGE"}
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == (reason == "INTERNAL"), "what the caller is not told stands in the log, once"


async def test_readiness_is_looked_up_on_every_call() -> None:
    bench = Bench()
    state = {"error": ModelLoading("soon")}

    @asynccontextmanager
    async def topics(deadline: float) -> AsyncIterator[Classifier]:
        if error := state.get("error"):
            raise error
        yield bench.topics

    analyzer = replace(bench.analyzer(), topics=topics)

    async def reason() -> str:
        found = {item.task: item for item in await analyse(analyzer)}[AnalysisTask.TOPICS]
        return found.reason if isinstance(found, TaskFailed) else ""

    assert await reason() == "MODEL_LOADING"
    state.clear()
    assert await reason() == ""


@pytest.mark.parametrize(
    "error", [DeadlineExceeded("late"), ServerOverloaded("full"), ModelLoading("soon"), ModelUnavailable("broken")]
)
async def test_if_all_fail_for_one_reason_the_call_fails(error: QuintetError) -> None:
    bench = Bench(*(Engine("x", error=error) for _ in range(4)))
    with pytest.raises(type(error), match=error.message):
        await analyse(bench.analyzer())


async def test_if_all_fail_for_different_reasons_each_is_told() -> None:
    bench = Bench(
        sentiment=Engine("s", error=ModelLoading("soon")), topics=Engine("t", error=ModelUnavailable("broken"))
    )
    results = await analyse(bench.analyzer(), frozenset({AnalysisTask.SENTIMENT, AnalysisTask.TOPICS}))
    assert {item.reason for item in results if isinstance(item, TaskFailed)} == {"MODEL_LOADING", "MODEL_UNAVAILABLE"}


async def test_closing_cancels_the_rest() -> None:
    bench = Bench(parser=Engine("l", asyncio.Event()), sentiment=Engine("s", asyncio.Event()))
    async with aclosing(bench.analyzer().stream(TEXT, ALL, deadline=soon())) as results:
        await anext(results)
    assert (bench.parser.cancelled, bench.sentiment.cancelled) == (1, 1)


async def test_cancelling_the_caller_cancels_everything() -> None:
    bench = Bench(*(Engine("x", asyncio.Event()) for _ in range(4)))
    call = asyncio.create_task(analyse(bench.analyzer()))
    await until(lambda: all(engine.calls for engine in bench.engines))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [engine.cancelled for engine in bench.engines] == [1, 1, 1, 1]


async def test_real_models_side_by_side(models: Path, scheduler: Scheduler) -> None:
    lane = Scheduler(1, queue_limit=8)
    sentiment, topics = (onnx_classifier(open_artefact(models, name), scheduler) for name in ("sentiment", "topics"))
    parser = SpacyParser(open_artefact(models, "en_core_web_sm"), lane)
    languages = FastTextIdentifier(open_artefact(models, "lid.176"), scheduler)
    analyzer = Analyzer(always(sentiment), always(topics), always(parser), always(languages))
    text = ("I love the wonderful museums of Paris. " * 150)[:5000]
    found = {item.task: item for item in await analyse(analyzer, text=text)}
    parser.close()
    lane.close()
    assert all(isinstance(item, TaskResult) for item in found.values())
    feeling, topic, language = (
        item.value
        for task in (AnalysisTask.SENTIMENT, AnalysisTask.TOPICS, AnalysisTask.LANGUAGE)
        if isinstance(item := found[task], TaskResult)
    )
    assert isinstance(feeling, Classification)
    assert isinstance(topic, Classification)
    assert (feeling.labels[0].name, feeling.truncated, topic.truncated) == ("positive", True, True)
    assert isinstance(language, tuple)
    assert isinstance(language[0], Label)
    assert language[0].name == "en"
