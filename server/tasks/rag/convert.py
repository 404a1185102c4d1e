"""Messages of quintet.v1.RagService to plain values and back."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, rag_pb2

from server.domain.chat import TextDelta
from server.domain.rag import (
    AskDone,
    AskSources,
    CollectionSummary,
    Document,
    DocumentInfo,
    GenerationDescription,
    IndexDescription,
    MetadataFilter,
    NumberRange,
    Passage,
    Query,
    TextRange,
    ValueIn,
)
from server.rpc.convert import finish_reason, index_ref, model_ref, usage

DEFAULT_COLLECTION = "wikipedia"
Event = AskSources | TextDelta | AskDone


def collection(request: Any) -> str:
    """The collection of a request that may leave it unset."""
    return request.collection or DEFAULT_COLLECTION


def query(
    request: rag_pb2.AskRequest | rag_pb2.StreamAskRequest | rag_pb2.RetrieveRequest, text: str, top_k: int
) -> Query:
    """What a request asks for."""
    filters = tuple(_filter(each) for each in request.filters)
    return Query(text, collection(request), top_k, filters, request.min_generation)


def _filter(wanted: rag_pb2.MetadataFilter) -> MetadataFilter:
    match wanted.WhichOneof("condition"):
        case "text_range":
            return TextRange(wanted.key, **_bounds(wanted.text_range))
        case "number_range":
            return NumberRange(wanted.key, **_bounds(wanted.number_range))
        case "any_of":
            return ValueIn(wanted.key, tuple(wanted.any_of.values))
        case _:
            return ValueIn(wanted.key, (wanted.equals,))


def _bounds(given: rag_pb2.TextRange | rag_pb2.NumberRange) -> dict[str, Any]:
    return {field.name: value for field, value in given.ListFields()}


def document(given: rag_pb2.Document) -> Document:
    """A document to be added."""
    return Document(given.id, given.text, given.title, given.uri, dict(given.metadata))


def stream_response(event: Event) -> rag_pb2.StreamAskResponse:
    """An event of an answer."""
    match event:
        case AskSources(retrieval):
            sources = rag_pb2.AskSources(citations=citations(retrieval.passages), index=index_ref(retrieval.index))
            return rag_pb2.StreamAskResponse(sources=sources)
        case TextDelta(text):
            return rag_pb2.StreamAskResponse(delta=common_pb2.TextDelta(text=text))
        case AskDone(chat, grounded, index):
            done = rag_pb2.AskDone(
                finish_reason=finish_reason(chat),
                grounded=grounded,
                usage=usage(chat.usage),
                model=model_ref(chat.model),
                index=index_ref(index),
            )
            return rag_pb2.StreamAskResponse(done=done)


def citations(passages: Sequence[Passage]) -> list[rag_pb2.Citation]:
    """Sources of an answer."""
    return [
        rag_pb2.Citation(
            document_id=p.document_id, title=p.title, snippet=p.text, score=p.score, uri=p.uri, start=p.start, end=p.end
        )
        for p in passages
    ]


def passage(found: Passage) -> rag_pb2.Passage:
    """A passage with the document that it is from."""
    return rag_pb2.Passage(
        document_id=found.document_id,
        title=found.title,
        text=found.text,
        score=found.score,
        uri=found.uri,
        metadata=found.metadata,
        start=found.start,
        end=found.end,
    )


def document_info(info: DocumentInfo) -> rag_pb2.DocumentInfo:
    """A document in a list."""
    return rag_pb2.DocumentInfo(
        id=info.id, title=info.title, uri=info.uri, metadata=info.metadata, text_length=info.text_length
    )


def summary(found: CollectionSummary) -> rag_pb2.Collection:
    """A collection in a list."""
    return rag_pb2.Collection(
        index=index_ref(found.identity),
        state=rag_pb2.CollectionState.ValueType(found.state.value),
        state_message=found.message,
        document_count=found.document_count,
    )


def generation(found: GenerationDescription) -> rag_pb2.Generation:
    """A kept generation."""
    return rag_pb2.Generation(
        generation=found.number,
        create_time=_timestamp(found.created),
        document_count=found.document_count,
        passage_count=found.passage_count,
        size_bytes=found.size_bytes,
        model=model_ref(found.embedder),
        origin=found.origin,
    )


def index(found: IndexDescription) -> rag_pb2.GetIndexResponse:
    """A collection as it is served."""
    return rag_pb2.GetIndexResponse(
        index=index_ref(found.identity),
        document_count=found.document_count,
        passage_count=found.passage_count,
        dimensions=found.dimensions,
        model=model_ref(found.embedder),
        size_bytes=found.size_bytes,
        update_time=_timestamp(found.updated),
        state=rag_pb2.CollectionState.ValueType(found.state.value),
        state_message=found.message,
        fault_count=found.fault_count,
        log_count=found.log_count,
        index_type=found.index_type,
        recall_at_10=found.recall_at_10,
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
