"""quintet.v1.RagService"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from quintet.v1 import rag_pb2, rag_pb2_grpc

from server.domain.chat import TextDelta
from server.domain.context import current
from server.domain.errors import InvalidRequest, Violation
from server.domain.money import Cost
from server.domain.rag import Answerer, AskDone, AskSources, IndexIdentity, Query, ReindexProgress, Retriever
from server.models.handle import Slot
from server.rpc.convert import index_ref, model_ref, usage
from server.rpc.model_access import permitted
from server.rpc.service_spec import FREE, Dependency, MethodSpec, ServiceSpec
from server.tasks.rag import convert
from server.tenancy.tenants import Role

AskLike = rag_pb2.AskRequest | rag_pb2.StreamAskRequest

_ASK_TOP_K = 3
_RETRIEVE_TOP_K = 5
_DOCUMENTS_A_PAGE = 100
_COLLECTIONS_A_PAGE = 50


class RagServicer(rag_pb2_grpc.RagServiceServicer):
    """Questions to answers with sources, and the collections behind them. `chat_model` is what the answerer asks."""

    def __init__(self, retriever: Slot[Retriever], answerer: Slot[Answerer], chat_model: str) -> None:
        self._retriever = retriever
        self._answerer = answerer
        self._chat_model = chat_model

    def estimate(self, request: AskLike) -> Cost:
        """What an answer costs at most. Raises what serving it would raise."""
        return self._answerer.get().estimate(_question(request))

    async def Ask(self, request: rag_pb2.AskRequest, context: Any) -> rag_pb2.AskResponse:
        """The stream of StreamAsk, collected."""
        texts: list[str] = []
        response = rag_pb2.AskResponse()
        async with aclosing(self._answer(request)) as events:
            async for event in events:
                match event:
                    case AskSources(retrieval):
                        response.citations.extend(convert.citations(retrieval.passages))
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
                yield convert.stream_response(event)

    async def _answer(self, request: AskLike) -> AsyncGenerator[convert.Event, None]:
        permitted(self._chat_model)
        answers = self._answerer.get().stream(_question(request), deadline=current().deadline)
        async with aclosing(answers) as events:
            async for event in events:
                yield event

    async def Retrieve(self, request: rag_pb2.RetrieveRequest, context: Any) -> rag_pb2.RetrieveResponse:
        """Passages alone."""
        query = convert.query(request, request.query, request.top_k or _RETRIEVE_TOP_K)
        found = await self._retriever.get().retrieve(query, deadline=current().deadline)
        return rag_pb2.RetrieveResponse(
            passages=map(convert.passage, found.passages),
            index=index_ref(found.index),
            model=model_ref(found.embedder),
        )

    async def AddDocuments(self, request: rag_pb2.AddDocumentsRequest, context: Any) -> rag_pb2.AddDocumentsResponse:
        """Add or replace."""
        documents = [convert.document(each) for each in request.documents]
        written = await self._retriever.get().add(request.collection, documents, deadline=current().deadline)
        return rag_pb2.AddDocumentsResponse(
            index=index_ref(written.index),
            added_count=written.added,
            updated_count=written.updated,
            unchanged_count=written.unchanged,
        )

    async def ImportDocuments(
        self, requests: AsyncIterator[rag_pb2.ImportDocumentsRequest], context: Any
    ) -> rag_pb2.ImportDocumentsResponse:
        """Add or replace, message by message; the next is read when the one before is written."""
        retriever = self._retriever.get()
        response = rag_pb2.ImportDocumentsResponse()
        collection = ""
        async for request in requests:
            given = request.collection
            if not (given or collection) or (collection and given and given != collection):
                wanted = f'must be "{collection}" or unset' if collection else "must be set in the first message"
                raise InvalidRequest([Violation("collection", wanted)])
            collection = given or collection
            documents = [convert.document(each) for each in request.documents]
            written = await retriever.add(collection, documents, deadline=current().deadline)
            response.index.CopyFrom(index_ref(written.index))
            response.added_count += written.added
            response.updated_count += written.updated
            response.unchanged_count += written.unchanged
        if not collection:
            raise InvalidRequest([Violation("", "must have a message")])
        return response

    async def DeleteDocuments(
        self, request: rag_pb2.DeleteDocumentsRequest, context: Any
    ) -> rag_pb2.DeleteDocumentsResponse:
        """Remove."""
        written = await self._retriever.get().delete(
            request.collection, request.document_ids, deadline=current().deadline
        )
        return rag_pb2.DeleteDocumentsResponse(index=index_ref(written.index), deleted_count=written.deleted)

    async def ListDocuments(self, request: rag_pb2.ListDocumentsRequest, context: Any) -> rag_pb2.ListDocumentsResponse:
        """A page; its token is the last id, so that writes in between do no harm."""
        page = await self._retriever.get().documents(
            convert.collection(request), request.page_token, request.page_size or _DOCUMENTS_A_PAGE
        )
        return rag_pb2.ListDocumentsResponse(
            documents=map(convert.document_info, page.documents),
            next_page_token="" if page.complete else page.documents[-1].id,
            index=index_ref(page.index),
        )

    async def CreateCollection(
        self, request: rag_pb2.CreateCollectionRequest, context: Any
    ) -> rag_pb2.CreateCollectionResponse:
        """Make an empty one."""
        retriever, deadline = self._retriever.get(), current().deadline
        await retriever.create(request.collection, deadline=deadline)
        made = await retriever.describe(request.collection, deadline=deadline)
        return rag_pb2.CreateCollectionResponse(index=index_ref(made.identity), model=model_ref(made.embedder))

    async def DeleteCollection(
        self, request: rag_pb2.DeleteCollectionRequest, context: Any
    ) -> rag_pb2.DeleteCollectionResponse:
        """Remove all of it."""
        last = await self._retriever.get().drop(request.collection, deadline=current().deadline)
        return rag_pb2.DeleteCollectionResponse(index=index_ref(last))

    async def ListCollections(
        self, request: rag_pb2.ListCollectionsRequest, context: Any
    ) -> rag_pb2.ListCollectionsResponse:
        """A page; its token is the last name."""
        size = request.page_size or _COLLECTIONS_A_PAGE
        found = [each for each in self._retriever.get().collections() if each.identity.collection > request.page_token]
        return rag_pb2.ListCollectionsResponse(
            collections=map(convert.summary, found[:size]),
            next_page_token=found[size - 1].identity.collection if len(found) > size else "",
        )

    async def GetIndex(self, request: rag_pb2.GetIndexRequest, context: Any) -> rag_pb2.GetIndexResponse:
        """Describe."""
        found = await self._retriever.get().describe(
            convert.collection(request), request.min_generation, deadline=current().deadline
        )
        return convert.index(found)

    async def ListGenerations(
        self, request: rag_pb2.ListGenerationsRequest, context: Any
    ) -> rag_pb2.ListGenerationsResponse:
        """What can be rolled back to."""
        served, kept = await self._retriever.get().generations(convert.collection(request))
        return rag_pb2.ListGenerationsResponse(generations=map(convert.generation, kept), index=index_ref(served))

    async def Rollback(self, request: rag_pb2.RollbackRequest, context: Any) -> rag_pb2.RollbackResponse:
        """Serve an old generation again."""
        served = await self._retriever.get().rollback(
            request.collection, request.generation, deadline=current().deadline
        )
        return rag_pb2.RollbackResponse(index=index_ref(served))

    async def Compact(self, request: rag_pb2.CompactRequest, context: Any) -> rag_pb2.CompactResponse:
        """Fold now."""
        found = await self._retriever.get().compact(request.collection, deadline=current().deadline)
        return rag_pb2.CompactResponse(index=index_ref(found.identity), size_bytes=found.size_bytes)

    async def Reindex(self, request: rag_pb2.ReindexRequest, context: Any) -> AsyncIterator[rag_pb2.ReindexResponse]:
        """Progress, done."""
        retriever, deadline = self._retriever.get(), current().deadline
        async with aclosing(retriever.reindex(request.collection, deadline=deadline)) as events:
            async for event in events:
                match event:
                    case ReindexProgress(done, total):
                        yield rag_pb2.ReindexResponse(progress=rag_pb2.ReindexProgress(done=done, total=total))
                    case IndexIdentity():
                        made = await retriever.describe(request.collection, deadline=deadline)
                        end = rag_pb2.ReindexDone(index=index_ref(event), model=model_ref(made.embedder))
                        yield rag_pb2.ReindexResponse(done=end)


def spec(
    retriever: Slot[Retriever], answerer: Slot[Answerer], chat_model: str, *, needs: Sequence[Dependency]
) -> ServiceSpec:
    """The service."""
    servicer = RagServicer(retriever, answerer, chat_model)
    read, write = MethodSpec(Role.CALL, FREE), MethodSpec(Role.INGEST, FREE)
    return ServiceSpec(
        rag_pb2.DESCRIPTOR.services_by_name["RagService"],
        rag_pb2_grpc.add_RagServiceServicer_to_server,
        servicer,
        {
            **dict.fromkeys(("Ask", "StreamAsk"), MethodSpec(Role.CALL, servicer.estimate)),
            **dict.fromkeys(("Retrieve", "ListDocuments", "ListCollections", "GetIndex", "ListGenerations"), read),
            **dict.fromkeys(("AddDocuments", "ImportDocuments", "DeleteDocuments"), write),
            **dict.fromkeys(("CreateCollection", "DeleteCollection", "Rollback", "Compact", "Reindex"), write),
        },
        needs=tuple(needs),
    )


def _question(request: AskLike) -> Query:
    return convert.query(request, request.question, request.top_k or _ASK_TOP_K)
