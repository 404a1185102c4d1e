"""quintet.v1.AnalysisService"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message
from quintet.v1 import analysis_pb2, analysis_pb2_grpc, common_pb2, errors_pb2

from server.domain.analysis import AnalysisTask, Analyzer, Entity, KeyPhrase, Span, TaskFailed, TaskResult, Token
from server.domain.context import current
from server.rpc.convert import labels, model_ref
from server.rpc.service_spec import FREE, Dependency, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

Request = analysis_pb2.AnalyzeRequest | analysis_pb2.StreamAnalyzeRequest


class AnalysisServicer(analysis_pb2_grpc.AnalysisServiceServicer):
    """A text to everything that can be seen in it."""

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer

    async def Analyze(self, request: analysis_pb2.AnalyzeRequest, context: Any) -> analysis_pb2.AnalyzeResponse:
        """All results together."""
        response = analysis_pb2.AnalyzeResponse()
        async with aclosing(self._results(request)) as results:
            async for result in results:
                if isinstance(result, TaskFailed):
                    response.failures.append(_failure(result))
                else:
                    field, message = _result(result)
                    getattr(response, field).CopyFrom(message)
        return response

    async def StreamAnalyze(
        self, request: analysis_pb2.StreamAnalyzeRequest, context: Any
    ) -> AsyncIterator[analysis_pb2.StreamAnalyzeResponse]:
        """Each result when it is ready."""
        done = analysis_pb2.AnalyzeDone()
        async with aclosing(self._results(request)) as results:
            async for result in results:
                if isinstance(result, TaskFailed):
                    done.failed_count += 1
                    yield analysis_pb2.StreamAnalyzeResponse(failure=_failure(result))
                else:
                    done.succeeded_count += 1
                    field, message = _result(result)
                    event = analysis_pb2.StreamAnalyzeResponse()
                    getattr(event, field).CopyFrom(message)
                    yield event
        yield analysis_pb2.StreamAnalyzeResponse(done=done)

    def _results(self, request: Request) -> Any:
        tasks = frozenset(AnalysisTask(task) for task in request.tasks) or frozenset(AnalysisTask)
        return self._analyzer.stream(request.text, tasks, deadline=current().deadline)


def spec(analyzer: Analyzer, *, needs: Sequence[Dependency], waits_for: Sequence[Dependency]) -> ServiceSpec:
    """The service. Nearly all of its compute is spaCy's, which has one lane."""
    return ServiceSpec(
        analysis_pb2.DESCRIPTOR.services_by_name["AnalysisService"],
        analysis_pb2_grpc.add_AnalysisServiceServicer_to_server,
        AnalysisServicer(analyzer),
        dict.fromkeys(("Analyze", "StreamAnalyze"), MethodSpec(Role.CALL, FREE)),
        needs=tuple(needs),
        waits_for=tuple(waits_for),
        lanes=1,
    )


def _failure(failed: TaskFailed) -> analysis_pb2.TaskFailure:
    return analysis_pb2.TaskFailure(
        task=analysis_pb2.AnalysisTask.ValueType(failed.task.value),
        reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{failed.reason}"),
        message=failed.message,
    )


def _result(result: TaskResult) -> tuple[str, Message]:
    """The response's field for this task, and the message that goes into it."""
    return result.task.name.lower(), _RESULTS[result.task](result.value, model_ref(result.model))


def _entity(entity: Entity) -> analysis_pb2.Entity:
    span = entity.span
    return analysis_pb2.Entity(text=span.text, type=entity.type, start=span.start, end=span.end)


def _key_phrase(phrase: KeyPhrase) -> analysis_pb2.KeyPhrase:
    span = phrase.span
    return analysis_pb2.KeyPhrase(
        text=span.text, score=phrase.score, count=phrase.count, start=span.start, end=span.end
    )


def _token(token: Token) -> analysis_pb2.Token:
    return analysis_pb2.Token(
        text=token.span.text,
        lemma=token.lemma,
        pos=token.pos,
        tag=token.tag,
        dependency=token.dependency,
        head=token.head,
        start=token.span.start,
        end=token.span.end,
    )


def _span(span: Span) -> analysis_pb2.TextSpan:
    return analysis_pb2.TextSpan(text=span.text, start=span.start, end=span.end)


_RESULTS: dict[AnalysisTask, Callable[[Any, common_pb2.ModelRef], Message]] = {
    AnalysisTask.ENTITIES: lambda found, model: analysis_pb2.EntitiesResult(entities=map(_entity, found), model=model),
    AnalysisTask.SENTIMENT: lambda found, model: analysis_pb2.SentimentResult(
        labels=labels(found.labels), truncated=found.truncated, model=model
    ),
    AnalysisTask.TOPICS: lambda found, model: analysis_pb2.TopicsResult(
        labels=labels(found.labels), truncated=found.truncated, model=model
    ),
    AnalysisTask.LANGUAGE: lambda found, model: analysis_pb2.LanguageResult(labels=labels(found), model=model),
    AnalysisTask.KEY_PHRASES: lambda found, model: analysis_pb2.KeyPhrasesResult(
        key_phrases=map(_key_phrase, found), model=model
    ),
    AnalysisTask.SENTENCES: lambda found, model: analysis_pb2.SentencesResult(sentences=map(_span, found), model=model),
    AnalysisTask.SYNTAX: lambda found, model: analysis_pb2.SyntaxResult(tokens=map(_token, found), model=model),
}
