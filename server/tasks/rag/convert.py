"""Messages of quintet.v1.RagService to domain types and back."""

from typing import Any

from quintet.v1 import common_pb2, rag_pb2

from server.domain import rag
from server.domain.chat import TextDelta
from server.rpc.convert import end_of_answer, index_ref

AskLike = rag_pb2.AskRequest | rag_pb2.StreamAskRequest
_ASK_TOP_K = 3
_RETRIEVE_TOP_K = 5


def collection(request: Any) -> str:
    """The collection of a request that may leave it unset."""
    return request.collection or rag.DEFAULT_COLLECTION


def query(request: AskLike | rag_pb2.RetrieveRequest) -> rag.Query:
    """A question, or a query for passages."""
    if isinstance(request, rag_pb2.RetrieveRequest):
        text, top_k = request.query, request.top_k or _RETRIEVE_TOP_K
    else:
        text, top_k = request.question, request.top_k or _ASK_TOP_K
    filters = tuple(_filter(each) for each in request.filters)
    return rag.Query(text, collection(request), top_k, filters, request.min_generation)


def _filter(wanted: rag_pb2.MetadataFilter) -> rag.MetadataFilter:
    match wanted.WhichOneof("condition"):
        case "text_range":
            return rag.TextRange(wanted.key, **_bounds(wanted.text_range))
        case "number_range":
            return rag.NumberRange(wanted.key, **_bounds(wanted.number_range))
        case "any_of":
            return rag.ValueIn(wanted.key, tuple(wanted.any_of.values))
        case _:
            return rag.ValueIn(wanted.key, (wanted.equals,))


def _bounds(given: rag_pb2.TextRange | rag_pb2.NumberRange) -> dict[str, Any]:
    return {field.name: value for field, value in given.ListFields()}


def document(given: rag_pb2.Document) -> rag.Document:
    return rag.Document(given.id, given.text, given.title, given.uri, dict(given.metadata))


def stream_response(event: rag.AskEvent) -> rag_pb2.StreamAskResponse:
    match event:
        case rag.Retrieval(passages, index):
            sources = rag_pb2.AskSources(citations=map(_citation, passages), index=index_ref(index))
            return rag_pb2.StreamAskResponse(sources=sources)
        case TextDelta(text):
            return rag_pb2.StreamAskResponse(delta=common_pb2.TextDelta(text=text))
        case rag.AskDone(chat, grounded, abstained, index):
            done = rag_pb2.AskDone(
                grounded=grounded, abstained=abstained, index=index_ref(index), **end_of_answer(chat)
            )
            return rag_pb2.StreamAskResponse(done=done)


def _citation(p: rag.Passage) -> rag_pb2.Citation:
    return rag_pb2.Citation(
        document_id=p.document_id, title=p.title, snippet=p.text, score=p.score, uri=p.uri, start=p.start, end=p.end
    )
