"""Messages of quintet.v1.RagService to domain types and back."""

from dataclasses import fields
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, rag_pb2

from server.domain.chat import TextDelta
from server.domain.rag import (
    DEFAULT_COLLECTION,
    AskDone,
    AskSources,
    CollectionInfo,
    Document,
    DocumentInfo,
    GenerationInfo,
    MetadataFilter,
    NumberRange,
    Passage,
    Query,
    TextRange,
    ValueIn,
)
from server.rpc.convert import finish_reason, index_ref, model_ref, usage

AskLike = rag_pb2.AskRequest | rag_pb2.StreamAskRequest
_ASK_TOP_K = 3
_RETRIEVE_TOP_K = 5


def collection(request: Any) -> str:
    """The collection of a request that may leave it unset."""
    return request.collection or DEFAULT_COLLECTION


def query(request: AskLike | rag_pb2.RetrieveRequest) -> Query:
    """A question, or a query for passages."""
    if isinstance(request, rag_pb2.RetrieveRequest):
        text, top_k = request.query, request.top_k or _RETRIEVE_TOP_K
    else:
        text, top_k = request.question, request.top_k or _ASK_TOP_K
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


def stream_response(event: AskSources | TextDelta | AskDone) -> rag_pb2.StreamAskResponse:
    """An event of an answer."""
    match event:
        case AskSources(found):
            sources = rag_pb2.AskSources(citations=map(_citation, found.passages), index=index_ref(found.index))
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


def _citation(p: Passage) -> rag_pb2.Citation:
    return rag_pb2.Citation(
        document_id=p.document_id, title=p.title, snippet=p.text, score=p.score, uri=p.uri, start=p.start, end=p.end
    )


def passage(found: Passage) -> rag_pb2.Passage:
    """A passage with its document."""
    return rag_pb2.Passage(**_by_name(found))


def document_info(found: DocumentInfo) -> rag_pb2.DocumentInfo:
    """A document in a list."""
    return rag_pb2.DocumentInfo(**_by_name(found))


def _by_name(value: Passage | DocumentInfo) -> dict[str, Any]:
    """The fields of a value whose message has fields of the same names."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def generation(found: GenerationInfo) -> rag_pb2.Generation:
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


def list_entry(found: CollectionInfo) -> rag_pb2.Collection:
    """A collection in a list."""
    return rag_pb2.Collection(
        index=index_ref(found.index),
        state=rag_pb2.CollectionState.ValueType(found.state.value),
        state_message=found.message,
        document_count=found.document_count,
    )


def index(found: CollectionInfo) -> rag_pb2.GetIndexResponse:
    """A collection as it is served."""
    return rag_pb2.GetIndexResponse(
        index=index_ref(found.index),
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
