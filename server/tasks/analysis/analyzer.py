"""Runs the tasks of an analysis concurrently, each on its model."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from server.domain.analysis import AnalysisTask, LanguageIdentifier, TaskFailed, TaskResult, TextParser
from server.domain.errors import QuintetError
from server.domain.texts import Classifier

log = logging.getLogger(__name__)
T = TypeVar("T")
UseModel = Callable[[float], AbstractAsyncContextManager[T]]  # Handle.use
_Tasks = tuple[AnalysisTask, ...]
_Parts = dict[_Tasks, Coroutine[Any, Any, list[TaskResult]]]

# The tasks that a parse serves, in the order of ParsedText.
_FROM_PARSE = AnalysisTask.ENTITIES, AnalysisTask.KEY_PHRASES, AnalysisTask.SENTENCES, AnalysisTask.SYNTAX


@dataclass(frozen=True)
class Analyzer:
    """Each field gives a model for the length of a block, by the deadline. Entering may load it, and may fail."""

    sentiment: UseModel[Classifier]
    topics: UseModel[Classifier]
    parser: UseModel[TextParser]
    languages: UseModel[LanguageIdentifier]

    async def stream(
        self, text: str, tasks: frozenset[AnalysisTask], *, deadline: float
    ) -> AsyncGenerator[TaskResult | TaskFailed, None]:
        """One item a task: results as they become ready, then the failures.

        If all tasks fail for the same reason, for instance the deadline, that error is raised instead. Closing the
        iterator cancels what still runs.
        """
        parts = {asyncio.create_task(part): served for served, part in self._parts(text, tasks, deadline).items()}
        failed: dict[AnalysisTask, QuintetError] = {}
        running = set(parts)
        try:
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    if error := part.exception():
                        failed |= dict.fromkeys(parts[part], _for_the_caller(error, parts[part]))
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

    def _parts(self, text: str, tasks: frozenset[AnalysisTask], deadline: float) -> _Parts:
        """What is to be computed, by the tasks that it serves."""
        parts: _Parts = {}
        if parsed := tuple(task for task in _FROM_PARSE if task in tasks):
            parts[parsed] = self._parse(parsed, text, deadline)
        for task, use in ((AnalysisTask.SENTIMENT, self.sentiment), (AnalysisTask.TOPICS, self.topics)):
            if task in tasks:
                parts[task,] = self._classify(task, use, text, deadline)
        if AnalysisTask.LANGUAGE in tasks:
            parts[AnalysisTask.LANGUAGE,] = self._identify(text, deadline)
        return parts

    async def _parse(self, tasks: _Tasks, text: str, deadline: float) -> list[TaskResult]:
        async with self.parser(deadline) as parser:
            parsed = await parser.parse(text, deadline=deadline)
            model = parser.description.identity
        found = zip(_FROM_PARSE, parsed, strict=True)
        return [TaskResult(task, value, model) for task, value in found if task in tasks]

    @staticmethod
    async def _classify(task: AnalysisTask, use: UseModel[Classifier], text: str, deadline: float) -> list[TaskResult]:
        async with use(deadline) as classifier:
            (classification,) = await classifier.classify([text], deadline=deadline)
            return [TaskResult(task, classification, classifier.description.identity)]

    async def _identify(self, text: str, deadline: float) -> list[TaskResult]:
        async with self.languages(deadline) as identifier:
            labels = await identifier.identify(text, deadline=deadline)
            return [TaskResult(AnalysisTask.LANGUAGE, labels, identifier.description.identity)]


def _for_the_caller(error: BaseException, tasks: _Tasks) -> QuintetError:
    """The error itself, or for a foreign one, which the log gets, an error without its text."""
    if isinstance(error, QuintetError):
        return error
    log.error("analysis failed: %s", ", ".join(task.name for task in tasks), exc_info=error)
    return QuintetError("an internal error; the server's log has the details")
