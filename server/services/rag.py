"""quintet.v1.RagService"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, rag_pb2, rag_pb2_grpc

from server import calls
from server.engines.interfaces import Answerer, AskDone, AskSources, Document, Passage, Retriever, TextDelta
from server.runtime.models import Slot
from server.services.convert import finish_reason, index_ref, model_ref, usage

DEFAULT_COLLECTION = "wikipedia"
_ASK_TOP_K = 3
_RETRIEVE_TOP_K = 5
Event = AskSources | TextDelta | AskDone


class RagServicer(rag_pb2_grpc.RagServiceServicer):
    """Questions to answers with sources, and the collections behind them."""

    def __init__(self, retriever: Slot[Retriever], answerer: Slot[Answerer]) -> None:
        self._retriever = retriever
        self._answerer = answerer

    async def Ask(self, request: rag_pb2.AskRequest, context: Any) -> rag_pb2.AskResponse:
        """The stream of StreamAsk, collected."""
        texts: list[str] = []
        response = rag_pb2.AskResponse()
        async with aclosing(self._answer(request)) as events:
            async for event in events:
                match event:
                    case AskSources(retrieval):
                        response.citations.extend(_citations(retrieval.passages))
                    case TextDelta(text):
                        texts.append(text)
                    case AskDone(chat, grounded, index):
                        response.grounded = grounded
                        response.usage.CopyFrom(usage(chat.usage))
                        response.model.CopyFrom(model_ref(chat.model))
                        response.index.CopyFrom(index_ref(index))
        response.answer = "".join(texts)
        return response

    async def StreamAsk(
        self, request: rag_pb2.StreamAskRequest, context: Any
    ) -> AsyncIterator[rag_pb2.StreamAskResponse]:
        """Sources, text, done."""
        async with aclosing(self._answer(request)) as events:
            async for event in events:
                yield _stream_response(event)

    async def _answer(self, request: rag_pb2.AskRequest | rag_pb2.StreamAskRequest) -> AsyncGenerator[Event, None]:
        events = self._answerer.get().stream(
            request.question,
            request.collection or DEFAULT_COLLECTION,
            request.top_k or _ASK_TOP_K,
            deadline=calls.current().deadline,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def Retrieve(self, request: rag_pb2.RetrieveRequest, context: Any) -> rag_pb2.RetrieveResponse:
        """Passages alone."""
        found = await self._retriever.get().retrieve(
            request.query,
            request.collection or DEFAULT_COLLECTION,
            request.top_k or _RETRIEVE_TOP_K,
            deadline=calls.current().deadline,
        )
        return rag_pb2.RetrieveResponse(
            passages=[_passage(passage) for passage in found.passages],
            index=index_ref(found.index),
            model=model_ref(found.embedder),
        )

    async def AddDocuments(self, request: rag_pb2.AddDocumentsRequest, context: Any) -> rag_pb2.AddDocumentsResponse:
        """Add or replace."""
        documents = [Document(d.id, d.text, d.title, d.uri, dict(d.metadata)) for d in request.documents]
        written = await self._retriever.get().add(request.collection, documents, deadline=calls.current().deadline)
        return rag_pb2.AddDocumentsResponse(
            index=index_ref(written.index),
            added_count=written.added,
            updated_count=written.updated,
            unchanged_count=written.unchanged,
        )

    async def DeleteDocuments(
        self, request: rag_pb2.DeleteDocumentsRequest, context: Any
    ) -> rag_pb2.DeleteDocumentsResponse:
        """Remove."""
        written = await self._retriever.get().delete(
            request.collection, request.document_ids, deadline=calls.current().deadline
        )
        return rag_pb2.DeleteDocumentsResponse(index=index_ref(written.index), deleted_count=written.deleted)

    async def GetIndex(self, request: rag_pb2.GetIndexRequest, context: Any) -> rag_pb2.GetIndexResponse:
        """Describe."""
        found = self._retriever.get().describe(request.collection or DEFAULT_COLLECTION)
        updated = Timestamp()
        updated.FromDatetime(found.updated)
        return rag_pb2.GetIndexResponse(
            index=index_ref(found.identity),
            document_count=found.document_count,
            passage_count=found.passage_count,
            dimensions=found.dimensions,
            model=model_ref(found.embedder),
            size_bytes=found.size_bytes,
            update_time=updated,
        )


def _stream_response(event: Event) -> rag_pb2.StreamAskResponse:
    match event:
        case AskSources(retrieval):
            sources = rag_pb2.AskSources(citations=_citations(retrieval.passages), index=index_ref(retrieval.index))
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


def _citations(passages: Sequence[Passage]) -> list[rag_pb2.Citation]:
    return [
        rag_pb2.Citation(
            document_id=p.document_id, title=p.title, snippet=p.text, score=p.score, uri=p.uri, start=p.start, end=p.end
        )
        for p in passages
    ]


def _passage(passage: Passage) -> rag_pb2.Passage:
    return rag_pb2.Passage(
        document_id=passage.document_id,
        title=passage.title,
        text=passage.text,
        score=passage.score,
        uri=passage.uri,
        metadata=passage.metadata,
        start=passage.start,
        end=passage.end,
    )
