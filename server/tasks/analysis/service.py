"""quintet.v1.AnalysisService"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message
from quintet.v1 import analysis_pb2, analysis_pb2_grpc, common_pb2, errors_pb2

from server.domain.analysis import AnalysisTask, Entity, KeyPhrase, TaskFailed, TaskResult, TextSpan, Token
from server.domain.context import current
from server.domain.texts import Classification, Label
from server.rpc.convert import labels, model_ref
from server.rpc.service_spec import FREE, Dependency, MethodSpec, ServiceSpec
from server.tasks.analysis.analyzer import Analyzer
from server.tenancy.tenants import Role

Request = analysis_pb2.AnalyzeRequest | analysis_pb2.StreamAnalyzeRequest


class AnalysisServicer(analysis_pb2_grpc.AnalysisServiceServicer):
    """Analyses a text in several ways at once."""

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer

    async def Analyze(self, request: analysis_pb2.AnalyzeRequest, context: Any) -> analysis_pb2.AnalyzeResponse:
        """All results together."""
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
        """Each result when it is ready."""
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


def _fail(failed: TaskFailed) -> analysis_pb2.TaskFailure:
    return analysis_pb2.TaskFailure(
        task=analysis_pb2.AnalysisTask.ValueType(failed.task.value),
        reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{failed.reason}"),
        message=failed.message,
    )


def _put(result: TaskResult, message: Message) -> None:
    """Set the field of `message` that is named like the task."""
    made = _RESULTS[result.task](result.value, model_ref(result.model))
    getattr(message, result.task.name.lower()).CopyFrom(made)


def _span(span: TextSpan) -> dict[str, Any]:
    return {"text": span.text, "start": span.start, "end": span.end}


def _entities(found: Sequence[Entity], model: common_pb2.ModelRef) -> Message:
    entities = (analysis_pb2.Entity(type=entity.type, **_span(entity.span)) for entity in found)
    return analysis_pb2.EntitiesResult(entities=entities, model=model)


def _key_phrases(found: Sequence[KeyPhrase], model: common_pb2.ModelRef) -> Message:
    phrases = (analysis_pb2.KeyPhrase(score=p.score, count=p.count, **_span(p.span)) for p in found)
    return analysis_pb2.KeyPhrasesResult(key_phrases=phrases, model=model)


def _sentences(found: Sequence[TextSpan], model: common_pb2.ModelRef) -> Message:
    sentences = (analysis_pb2.TextSpan(**_span(span)) for span in found)
    return analysis_pb2.SentencesResult(sentences=sentences, model=model)


def _syntax(found: Sequence[Token], model: common_pb2.ModelRef) -> Message:
    tokens = (
        analysis_pb2.Token(lemma=t.lemma, pos=t.pos, tag=t.tag, dependency=t.dependency, head=t.head, **_span(t.span))
        for t in found
    )
    return analysis_pb2.SyntaxResult(tokens=tokens, model=model)


def _sentiment(found: Classification, model: common_pb2.ModelRef) -> Message:
    return analysis_pb2.SentimentResult(labels=labels(found.labels), truncated=found.truncated, model=model)


def _topics(found: Classification, model: common_pb2.ModelRef) -> Message:
    return analysis_pb2.TopicsResult(labels=labels(found.labels), truncated=found.truncated, model=model)


def _language(found: Sequence[Label], model: common_pb2.ModelRef) -> Message:
    return analysis_pb2.LanguageResult(labels=labels(found), model=model)


_RESULTS: dict[AnalysisTask, Callable[[Any, common_pb2.ModelRef], Message]] = {
    AnalysisTask.ENTITIES: _entities,
    AnalysisTask.SENTIMENT: _sentiment,
    AnalysisTask.TOPICS: _topics,
    AnalysisTask.LANGUAGE: _language,
    AnalysisTask.KEY_PHRASES: _key_phrases,
    AnalysisTask.SENTENCES: _sentences,
    AnalysisTask.SYNTAX: _syntax,
}
