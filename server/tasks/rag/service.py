"""quintet.v1.RagService"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from quintet.v1 import rag_pb2 as pb
from quintet.v1 import rag_pb2_grpc

from server.domain.access import Caller, Quotas, Right
from server.domain.chat import ChatModel
from server.domain.context import current
from server.domain.errors import InvalidRequest, Violation
from server.domain.money import Cost
from server.domain.rag import Query, ReindexProgress
from server.models.handle import Handle
from server.rpc.access import SEES_COLLECTIONS, names_collection, uses, uses_default
from server.rpc.convert import by_name, index_ref, model_ref
from server.rpc.service_spec import FREE, MethodSpec, ServiceSpec
from server.tasks.rag import convert
from server.tenancy.tenants import Role

if TYPE_CHECKING:  # importing FAISS takes time that the start of the server has no need to wait for
    from server.tasks.rag.answerer import Answerer
    from server.tasks.rag.engine import RagEngine

_DOCUMENTS_A_PAGE = 100
_COLLECTIONS_A_PAGE = 50


class RagServicer(rag_pb2_grpc.RagServiceServicer):
    """Questions to answers with sources, and the collections behind them."""

    def __init__(self, engine: "Handle[RagEngine]", answerer: "Handle[Answerer]") -> None:
        self._engine = engine
        self._answerer = answerer

    def estimate(self, request: convert.AskLike) -> Cost:
        """What an answer costs at most. Raises what serving it would raise."""
        return self._answerer.get().estimate(_question(request))

    def owners(self) -> Mapping[str, str]:
        """The recorded owner of every collection."""
        return self._engine.get().owners()

    async def look_for(self, name: str) -> None:
        """Find a collection that another server has just made or changed."""
        await self._engine.get().look_for(name)

    async def Ask(self, request: pb.AskRequest, context: Any) -> pb.AskResponse:
        texts: list[str] = []
        citations: list[pb.Citation] = []
        done = pb.AskDone()
        async with aclosing(self.StreamAsk(request, context)) as events:
            async for event in events:
                texts.append(event.delta.text)  # empty in the other events
                citations += event.sources.citations
                if event.HasField("done"):
                    done = event.done
        return pb.AskResponse(
            answer="".join(texts),
            citations=citations,
            grounded=done.grounded,
            abstained=done.abstained,
            usage=done.usage,
            model=done.model,
            index=done.index,
        )

    async def StreamAsk(self, request: convert.AskLike, context: Any) -> AsyncGenerator[pb.StreamAskResponse, None]:
        answer = self._answerer.get().stream(_question(request), deadline=current().deadline)
        async with aclosing(answer) as events:
            async for event in events:
                yield convert.stream_response(event)

    async def Retrieve(self, request: pb.RetrieveRequest, context: Any) -> pb.RetrieveResponse:
        found = await self._engine.get().retrieve(convert.query(request), deadline=current().deadline)
        passages = [pb.Passage(**each._asdict()) for each in found.passages]
        return pb.RetrieveResponse(passages=passages, index=index_ref(found.index), model=model_ref(found.model))

    async def AddDocuments(self, request: pb.AddDocumentsRequest, context: Any) -> pb.AddDocumentsResponse:
        documents = [convert.document(each) for each in request.documents]
        written = await self._engine.get().ingester.add(request.collection, documents, deadline=current().deadline)
        return by_name(pb.AddDocumentsResponse, written)

    async def ImportDocuments(
        self, requests: AsyncIterator[pb.ImportDocumentsRequest], context: Any
    ) -> pb.ImportDocumentsResponse:
        """Add or replace, message by message; the next is read when the one before is written."""
        ingester = self._engine.get().ingester
        response = pb.ImportDocumentsResponse()
        collection = ""
        async for request in requests:
            given = request.collection
            if not (given or collection) or (collection and given and given != collection):
                wanted = f'must be "{collection}" or unset' if collection else "must be set in the first message"
                raise InvalidRequest([Violation("collection", wanted)])
            collection = given or collection
            documents = [convert.document(each) for each in request.documents]
            written = await ingester.add(collection, documents, deadline=current().deadline)
            response.index.CopyFrom(index_ref(written.index))
            response.added_count += written.added_count
            response.updated_count += written.updated_count
            response.unchanged_count += written.unchanged_count
        if not collection:
            raise InvalidRequest([Violation("", "must have a message")])
        return response

    async def DeleteDocuments(self, request: pb.DeleteDocumentsRequest, context: Any) -> pb.DeleteDocumentsResponse:
        ingester = self._engine.get().ingester
        written = await ingester.delete(request.collection, request.document_ids, deadline=current().deadline)
        return by_name(pb.DeleteDocumentsResponse, written)

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Any) -> pb.ListDocumentsResponse:
        """A page; its token is the last id, so that writes in between do no harm."""
        page = await self._engine.get().list_documents(
            convert.collection(request), request.page_token, request.page_size or _DOCUMENTS_A_PAGE
        )
        return pb.ListDocumentsResponse(
            documents=[by_name(pb.DocumentInfo, each) for each in page.documents],
            next_page_token="" if page.complete else page.documents[-1].id,
            index=index_ref(page.index),
        )

    async def CreateCollection(self, request: pb.CreateCollectionRequest, context: Any) -> pb.CreateCollectionResponse:
        engine = self._engine.get()
        made = await engine.ingester.create(request.collection, deadline=current().deadline)
        return pb.CreateCollectionResponse(index=index_ref(made), model=model_ref(engine.embedder))

    async def DeleteCollection(self, request: pb.DeleteCollectionRequest, context: Any) -> pb.DeleteCollectionResponse:
        last = await self._engine.get().drop(request.collection, deadline=current().deadline)
        return pb.DeleteCollectionResponse(index=index_ref(last))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Any) -> pb.ListCollectionsResponse:
        size = request.page_size or _COLLECTIONS_A_PAGE
        caller = current().caller
        found = [
            each
            for each in self._engine.get().list_collections()
            if each.index.collection > request.page_token
            if caller.may(Right.READ, each.index.collection, each.owner)
        ]
        return pb.ListCollectionsResponse(
            collections=[
                by_name(pb.Collection, each, owner=caller.shown_owner(each.index.collection, each.owner))
                for each in found[:size]
            ],
            next_page_token=found[size - 1].index.collection if len(found) > size else "",
            storage=self._storage(caller),
        )

    def _storage(self, caller: Caller) -> pb.Storage | None:
        if caller.grants is None:
            return None
        stored = self._engine.get().quotas.stored(caller, caller.tenant)
        quotas = caller.quotas.get(caller.tenant, Quotas())
        return pb.Storage(
            collection_count=stored.collections,
            document_count=stored.documents,
            size_bytes=stored.size_bytes,
            max_collection_count=quotas.collections,
            max_document_count=quotas.documents,
            max_size_bytes=quotas.bytes,
        )

    async def GetIndex(self, request: pb.GetIndexRequest, context: Any) -> pb.GetIndexResponse:
        name, deadline = convert.collection(request), current().deadline
        found = await self._engine.get().describe(name, request.min_generation, deadline=deadline)
        return by_name(pb.GetIndexResponse, found)

    async def ListGenerations(self, request: pb.ListGenerationsRequest, context: Any) -> pb.ListGenerationsResponse:
        served, kept = await self._engine.get().list_generations(convert.collection(request))
        generations = [by_name(pb.Generation, each) for each in kept]
        return pb.ListGenerationsResponse(generations=generations, index=index_ref(served))

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.RollbackResponse:
        engine = self._engine.get()
        served = await engine.rollback(request.collection, request.generation, deadline=current().deadline)
        return pb.RollbackResponse(index=index_ref(served))

    async def Compact(self, request: pb.CompactRequest, context: Any) -> pb.CompactResponse:
        found = await self._engine.get().compact(request.collection, deadline=current().deadline)
        return by_name(pb.CompactResponse, found)

    async def Reindex(self, request: pb.ReindexRequest, context: Any) -> AsyncIterator[pb.ReindexResponse]:
        engine = self._engine.get()
        async with aclosing(engine.reindexer.observe(request.collection)) as events:
            async for event in events:
                if isinstance(event, ReindexProgress):
                    yield pb.ReindexResponse(progress=by_name(pb.ReindexProgress, event))
                else:
                    done = pb.ReindexDone(index=index_ref(event), model=model_ref(engine.embedder))
                    yield pb.ReindexResponse(done=done)


def _question(request: convert.AskLike) -> Query:
    """What a request asks for, converted once for both its estimate and its answer."""
    call = current()
    if call.converted is None:
        call.converted = convert.query(request)
    return cast(Query, call.converted)


def spec(
    engine: "Handle[RagEngine]",
    answerer: "Handle[Answerer]",
    chat: Handle[ChatModel],
    *,
    retrieval: Sequence[str],
    answers_needed: bool,
    reranker: Handle[Any] | None = None,
) -> ServiceSpec:
    """The service. It needs the `answerer`, which asks `chat`, unless the settings want no language model, and the
    `reranker` if they want one.

    `retrieval` are the names of the models that find passages, the embedder first.
    """
    servicer = RagServicer(engine, answerer)
    finds, embeds, answers = uses(*retrieval), uses(retrieval[0]), uses_default(chat.name)
    read = names_collection(Right.READ, convert.collection, servicer.owners, servicer.look_for)
    add, write, create, delete = (
        names_collection(right, lambda request: request.collection, servicer.owners, servicer.look_for)
        for right in (Right.ADD, Right.WRITE, Right.CREATE, Right.DELETE)
    )
    called, ingests = partial(MethodSpec, Role.CALL, FREE), partial(MethodSpec, Role.INGEST, FREE)
    return ServiceSpec(
        servicer,
        {
            **dict.fromkeys(("Ask", "StreamAsk"), MethodSpec(Role.CALL, servicer.estimate, (finds, answers, read))),
            "Retrieve": called((finds, read)),
            "ListCollections": called((SEES_COLLECTIONS,)),
            **dict.fromkeys(("ListDocuments", "GetIndex", "ListGenerations"), called((read,))),
            **dict.fromkeys(("AddDocuments", "ImportDocuments"), ingests((embeds, add))),
            **dict.fromkeys(("DeleteDocuments", "Rollback", "Compact"), ingests((write,))),
            "Reindex": ingests((embeds, write)),
            "CreateCollection": ingests((embeds, create)),
            "DeleteCollection": ingests((delete,)),
        },
        needs=(engine, *((answerer, chat) if answers_needed else ()), *((reranker,) if reranker else ())),
    )
