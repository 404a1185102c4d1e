"""quintet.v1.AnalysisService"""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message
from quintet.v1 import analysis_pb2, analysis_pb2_grpc

from server.domain.analysis import AnalysisTask, LanguageIdentifier, TaskFailed, TaskResult, TextParser
from server.domain.context import current
from server.domain.texts import Classifier
from server.models.handle import Handle
from server.rpc.access import uses_some
from server.rpc.convert import by_name, labels, model_ref
from server.rpc.service_spec import FREE, MethodSpec, ServiceSpec
from server.tasks.analysis.analyzer import Analyzer
from server.tenancy.tenants import Role

Request = analysis_pb2.AnalyzeRequest | analysis_pb2.StreamAnalyzeRequest


class AnalysisServicer(analysis_pb2_grpc.AnalysisServiceServicer):
    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer

    async def Analyze(self, request: analysis_pb2.AnalyzeRequest, context: Any) -> analysis_pb2.AnalyzeResponse:
        response = analysis_pb2.AnalyzeResponse()
        async with aclosing(self._results(request)) as results:
            async for result in results:
                if isinstance(result, TaskFailed):
                    response.failures.append(_fail(result))
                else:
                    _put(result, response)
        return response

    async def StreamAnalyze(
        self, request: analysis_pb2.StreamAnalyzeRequest, context: Any
    ) -> AsyncIterator[analysis_pb2.StreamAnalyzeResponse]:
        done = analysis_pb2.AnalyzeDone()
        async with aclosing(self._results(request)) as results:
            async for result in results:
                if isinstance(result, TaskFailed):
                    done.failed_count += 1
                    yield analysis_pb2.StreamAnalyzeResponse(failure=_fail(result))
                else:
                    done.succeeded_count += 1
                    event = analysis_pb2.StreamAnalyzeResponse()
                    _put(result, event)
                    yield event
        yield analysis_pb2.StreamAnalyzeResponse(done=done)

    def _results(self, request: Request) -> Any:
        return self._analyzer.stream(request.text, _tasks(request), deadline=current().deadline)


def spec(
    parser: Handle[TextParser], languages: Handle[LanguageIdentifier], classifiers: Mapping[str, Handle[Classifier]]
) -> ServiceSpec:
    """The service over a parser, a language identifier, and the classifiers "sentiment" and "topics".

    It serves without classifiers that have failed. Nearly all of its compute is spaCy's, which has one lane.
    """
    sentiment, topics = classifiers["sentiment"], classifiers["topics"]
    others: dict[AnalysisTask, Handle[Any]] = {
        AnalysisTask.SENTIMENT: sentiment,
        AnalysisTask.TOPICS: topics,
        AnalysisTask.LANGUAGE: languages,
    }

    def models(request: Request) -> set[str]:
        return {others[task].name if task in others else parser.name for task in _tasks(request)}

    return ServiceSpec(
        AnalysisServicer(Analyzer(sentiment.use, topics.use, parser.use, languages.use)),
        dict.fromkeys(("Analyze", "StreamAnalyze"), MethodSpec(Role.CALL, FREE, (uses_some(models),))),
        needs=(parser, languages),
        waits_for=tuple(classifiers.values()),
        lanes=1,
    )


def _tasks(request: Request) -> frozenset[AnalysisTask]:
    return frozenset(AnalysisTask(task) for task in request.tasks) or frozenset(AnalysisTask)


def _fail(failed: TaskFailed) -> analysis_pb2.TaskFailure:
    return by_name(analysis_pb2.TaskFailure, failed, reason=f"ERROR_REASON_{failed.reason}")


def _put(result: TaskResult, message: Message) -> None:
    """Fill the field of `message` that is named like the task."""
    made: Any = getattr(message, result.task.name.lower())
    made.model.CopyFrom(model_ref(result.model))
    match result.task:
        case AnalysisTask.SENTIMENT | AnalysisTask.TOPICS:
            made.labels.extend(labels(result.value.labels))
            made.truncated = result.value.truncated
            made.unknown_share = result.value.unknown_share
        case AnalysisTask.LANGUAGE:
            made.labels.extend(labels(result.value))
        case task:
            found = made.tokens if task is AnalysisTask.SYNTAX else getattr(made, task.name.lower())
            for each in result.value:
                found.add(**each._asdict())
