"""Looks at a text in several ways at once, with models that come and go by themselves."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from server.domain.analysis import (
    AnalysisTask,
    AnalysisValue,
    LanguageIdentifier,
    ParsedText,
    TaskFailed,
    TaskResult,
    TextParser,
)
from server.domain.errors import QuintetError
from server.domain.texts import Classifier

log = logging.getLogger(__name__)

_FROM_PARSE: dict[AnalysisTask, Callable[[ParsedText], AnalysisValue]] = {
    AnalysisTask.ENTITIES: lambda parsed: parsed.entities,
    AnalysisTask.KEY_PHRASES: lambda parsed: parsed.key_phrases,
    AnalysisTask.SENTENCES: lambda parsed: parsed.sentences,
    AnalysisTask.SYNTAX: lambda parsed: parsed.tokens,
}


T = TypeVar("T")
Lender = Callable[[float], AbstractAsyncContextManager[T]]
_Members = tuple[AnalysisTask, ...]
_Work = Coroutine[Any, Any, list[TaskResult]]


@dataclass(frozen=True)
class SideBySideAnalyzer:
    """An Analyzer. Every field lends an engine for the length of a block, given the deadline; entering the block may
    load it, and raises ModelLoading, ModelUnavailable or ModelDoesNotFit.
    """

    sentiment: Lender[Classifier]
    topics: Lender[Classifier]
    linguist: Lender[TextParser]
    languages: Lender[LanguageIdentifier]

    async def stream(
        self, text: str, tasks: frozenset[AnalysisTask], *, deadline: float
    ) -> AsyncGenerator[TaskResult | TaskFailed, None]:
        """One item a task: results as they become ready, then the failures.

        If no task succeeds and all fail for one reason, for instance the deadline, that error is raised instead.
        Closing the iterator cancels what still runs.
        """
        parts = {asyncio.create_task(work): members for members, work in self._parts(text, tasks, deadline).items()}
        failed: dict[AnalysisTask, QuintetError] = {}
        running = set(parts)
        try:
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    if error := part.exception():
                        failed |= dict.fromkeys(parts[part], _known(error, parts[part]))
                        continue
                    for result in part.result():
                        yield result
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        if tasks and failed.keys() == tasks and len({error.reason for error in failed.values()}) == 1:
            raise next(iter(failed.values()))
        for task, error in failed.items():
            yield TaskFailed(task, error.reason, error.message)

    def _parts(self, text: str, tasks: frozenset[AnalysisTask], deadline: float) -> dict[_Members, _Work]:
        """What is to be done, by the tasks that it serves."""
        parts: dict[_Members, _Work] = {}
        if parsed := tuple(task for task in _FROM_PARSE if task in tasks):
            parts[parsed] = self._parse(parsed, text, deadline)
        for task, classifier in ((AnalysisTask.SENTIMENT, self.sentiment), (AnalysisTask.TOPICS, self.topics)):
            if task in tasks:
                parts[task,] = _classify(task, classifier, text, deadline)
        if AnalysisTask.LANGUAGE in tasks:
            parts[AnalysisTask.LANGUAGE,] = self._identify(text, deadline)
        return parts

    async def _parse(self, tasks: _Members, text: str, deadline: float) -> list[TaskResult]:
        async with self.linguist(deadline) as linguist:
            parsed = await linguist.parse(text, deadline=deadline)
            model = linguist.description.identity
        return [TaskResult(task, _FROM_PARSE[task](parsed), model) for task in tasks]

    async def _identify(self, text: str, deadline: float) -> list[TaskResult]:
        async with self.languages(deadline) as identifier:
            labels = await identifier.identify(text, deadline=deadline)
            return [TaskResult(AnalysisTask.LANGUAGE, labels, identifier.description.identity)]


async def _classify(task: AnalysisTask, classifier: Lender[Classifier], text: str, deadline: float) -> list[TaskResult]:
    async with classifier(deadline) as engine:
        (classification,) = await engine.classify([text], deadline=deadline)
        return [TaskResult(task, classification, engine.description.identity)]


def _known(error: BaseException, tasks: _Members) -> QuintetError:
    """An error whose text may reach the caller."""
    if isinstance(error, QuintetError):
        return error
    log.error("analysis failed: %s", ", ".join(task.name for task in tasks), exc_info=error)
    return QuintetError("an internal error; the server's log has the details")
