"""Collections of the small server: documents in memory."""

import re
from collections.abc import Iterator, Sequence

import grpc
from quintet.v1 import common_pb2, rag_pb2, rag_pb2_grpc

from tests.clients.recorder import Failure, abort
from tests.clients.servicers import MODEL, Context

PAGE = 2  # documents or collections, so that lists have pages
Filters = Sequence[rag_pb2.MetadataFilter]


class Rag(rag_pb2_grpc.RagServiceServicer):
    """Documents in memory; a passage is a whole document, its score the share of the query's words in it."""

    def __init__(self) -> None:
        self.collections: dict[str, dict[str, rag_pb2.Document]] = {}
        self.owners: dict[str, str] = {}
        self.storage: rag_pb2.Storage | None = None
        self.generation = 0
        self.origin = "fold"
        self.breaks: list[bool] = []  # streams of Reindex that break after an event; whether the work ends meanwhile

    def _index(self, collection: str) -> common_pb2.IndexRef:
        return common_pb2.IndexRef(collection=collection, generation=self.generation)

    def _find(self, query: str, collection: str, top_k: int, filters: Filters) -> list[tuple[float, rag_pb2.Document]]:
        words = set(re.findall(r"\w+", query.lower()))
        documents = [each for each in self.collections.get(collection, {}).values() if _fulfils(each, filters)]
        scored = [(len(words & set(re.findall(r"\w+", each.text.lower()))) / len(words), each) for each in documents]
        return sorted((pair for pair in scored if pair[0]), key=lambda pair: -pair[0])[:top_k]

    def Ask(self, request: rag_pb2.AskRequest, context: Context) -> rag_pb2.AskResponse:
        found = self._find(request.question, request.collection, request.top_k or 3, request.filters)
        return rag_pb2.AskResponse(
            answer=found[0][1].text if found else "",
            citations=self._citations(found),
            grounded=bool(found),
            abstained=not found,
            model=MODEL,
            index=self._index(request.collection),
        )

    def StreamAsk(self, request: rag_pb2.StreamAskRequest, context: Context) -> Iterator[rag_pb2.StreamAskResponse]:
        found = self._find(request.question, request.collection, request.top_k or 3, request.filters)
        index = self._index(request.collection)
        yield rag_pb2.StreamAskResponse(sources=rag_pb2.AskSources(citations=self._citations(found), index=index))
        for word in found[0][1].text.split() if found else ():
            yield rag_pb2.StreamAskResponse(delta=common_pb2.TextDelta(text=f"{word} "))
        reason = common_pb2.FINISH_REASON_STOP if found else common_pb2.FINISH_REASON_NO_PASSAGES
        abstained = not found or "do not know" in found[0][1].text
        grounded = bool(found) and not abstained
        done = rag_pb2.AskDone(finish_reason=reason, grounded=grounded, abstained=abstained, model=MODEL, index=index)
        yield rag_pb2.StreamAskResponse(done=done)

    @staticmethod
    def _citations(found: Sequence[tuple[float, rag_pb2.Document]]) -> list[rag_pb2.Citation]:
        return [
            rag_pb2.Citation(document_id=each.id, title=each.title, snippet=each.text, score=score, uri=each.uri)
            for score, each in found
        ]

    def Retrieve(self, request: rag_pb2.RetrieveRequest, context: Context) -> rag_pb2.RetrieveResponse:
        found = self._find(request.query, request.collection, request.top_k or 5, request.filters)
        passages = [
            rag_pb2.Passage(document_id=each.id, title=each.title, text=each.text, score=score) for score, each in found
        ]
        return rag_pb2.RetrieveResponse(passages=passages, index=self._index(request.collection), model=MODEL)

    def AddDocuments(self, request: rag_pb2.AddDocumentsRequest, context: Context) -> rag_pb2.AddDocumentsResponse:
        return self._add(request.collection, request.documents)

    def _add(self, collection: str, added: Sequence[rag_pb2.Document]) -> rag_pb2.AddDocumentsResponse:
        documents = self.collections.setdefault(collection, {})
        unchanged = sum(documents.get(each.id) == each for each in added)
        known = sum(each.id in documents for each in added)
        documents.update({each.id: each for each in added})
        self.generation += 1
        return rag_pb2.AddDocumentsResponse(
            index=self._index(collection),
            added_count=len(added) - known,
            updated_count=known - unchanged,
            unchanged_count=unchanged,
        )

    def DeleteDocuments(
        self, request: rag_pb2.DeleteDocumentsRequest, context: Context
    ) -> rag_pb2.DeleteDocumentsResponse:
        documents = self.collections.get(request.collection, {})
        deleted = [documents.pop(each, None) for each in request.document_ids]
        self.generation += 1
        return rag_pb2.DeleteDocumentsResponse(
            index=self._index(request.collection), deleted_count=sum(each is not None for each in deleted)
        )

    def GetIndex(self, request: rag_pb2.GetIndexRequest, context: Context) -> rag_pb2.GetIndexResponse:
        count = len(self.collections.get(request.collection, {}))
        return rag_pb2.GetIndexResponse(index=self._index(request.collection), document_count=count)

    def ImportDocuments(
        self, request_iterator: Iterator[rag_pb2.ImportDocumentsRequest], context: Context
    ) -> rag_pb2.ImportDocumentsResponse:
        total = rag_pb2.ImportDocumentsResponse()
        collection = ""
        for request in request_iterator:
            collection = request.collection or collection
            added = self._add(collection, request.documents)
            total.index.CopyFrom(added.index)
            total.added_count += added.added_count
            total.updated_count += added.updated_count
            total.unchanged_count += added.unchanged_count
        return total

    def ListDocuments(self, request: rag_pb2.ListDocumentsRequest, context: Context) -> rag_pb2.ListDocumentsResponse:
        documents = sorted(self._known(request.collection, context).items())
        page = [each for name, each in documents if name > request.page_token][: PAGE + 1]
        return rag_pb2.ListDocumentsResponse(
            documents=[
                rag_pb2.DocumentInfo(id=each.id, title=each.title, metadata=each.metadata, text_length=len(each.text))
                for each in page[:PAGE]
            ],
            next_page_token=page[PAGE - 1].id if len(page) > PAGE else "",
            index=self._index(request.collection),
        )

    def CreateCollection(
        self, request: rag_pb2.CreateCollectionRequest, context: Context
    ) -> rag_pb2.CreateCollectionResponse:
        if request.collection in self.collections:
            abort(context, Failure(grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS", "there is one already"), "")
        self.collections[request.collection] = {}
        return rag_pb2.CreateCollectionResponse(index=self._index(request.collection), model=MODEL)

    def DeleteCollection(
        self, request: rag_pb2.DeleteCollectionRequest, context: Context
    ) -> rag_pb2.DeleteCollectionResponse:
        self._known(request.collection, context)
        del self.collections[request.collection]
        return rag_pb2.DeleteCollectionResponse(index=self._index(request.collection))

    def ListCollections(
        self, request: rag_pb2.ListCollectionsRequest, context: Context
    ) -> rag_pb2.ListCollectionsResponse:
        names = [name for name in sorted(self.collections) if name > request.page_token]
        return rag_pb2.ListCollectionsResponse(
            collections=[
                rag_pb2.Collection(
                    index=self._index(name),
                    state=rag_pb2.COLLECTION_STATE_READY,
                    document_count=len(self.collections[name]),
                    owner=self.owners.get(name, ""),
                )
                for name in names[:PAGE]
            ],
            next_page_token=names[PAGE - 1] if len(names) > PAGE else "",
            storage=self.storage,
        )

    def ListGenerations(
        self, request: rag_pb2.ListGenerationsRequest, context: Context
    ) -> rag_pb2.ListGenerationsResponse:
        count = len(self._known(request.collection, context))
        generation = rag_pb2.Generation(
            generation=self.generation,
            document_count=count,
            passage_count=count,
            size_bytes=1_500_000,
            origin=self.origin,
        )
        return rag_pb2.ListGenerationsResponse(generations=[generation], index=self._index(request.collection))

    def Rollback(self, request: rag_pb2.RollbackRequest, context: Context) -> rag_pb2.RollbackResponse:
        self.generation += 1
        return rag_pb2.RollbackResponse(index=self._index(request.collection))

    def Compact(self, request: rag_pb2.CompactRequest, context: Context) -> rag_pb2.CompactResponse:
        return rag_pb2.CompactResponse(index=self._index(request.collection), size_bytes=1_500_000)

    def Reindex(self, request: rag_pb2.ReindexRequest, context: Context) -> Iterator[rag_pb2.ReindexResponse]:
        total = len(self._known(request.collection, context))
        for done in range(total + 1):
            if done and self.breaks:
                if self.breaks.pop():
                    self.generation, self.origin = self.generation + 1, "reindex"
                abort(context, Failure(grpc.StatusCode.UNAVAILABLE, message="Socket closed"), "")
            yield rag_pb2.ReindexResponse(progress=rag_pb2.ReindexProgress(done=done, total=total))
        self.generation += 1
        done_event = rag_pb2.ReindexDone(index=self._index(request.collection), model=MODEL)
        yield rag_pb2.ReindexResponse(done=done_event)

    def _known(self, collection: str, context: Context) -> dict[str, rag_pb2.Document]:
        if collection not in self.collections:
            abort(context, Failure(grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND", f"no {collection}"), "")
        return self.collections[collection]


def _fulfils(document: rag_pb2.Document, filters: Filters) -> bool:
    return all(_holds(document.metadata.get(each.key), each) for each in filters)


def _holds(value: str | None, condition: rag_pb2.MetadataFilter) -> bool:
    if value is None:
        return False
    match condition.WhichOneof("condition"):
        case "equals":
            return value == condition.equals
        case "any_of":
            return value in condition.any_of.values
        case "text_range":
            texts = condition.text_range
            return texts.at_least <= value and (not texts.HasField("at_most") or value <= texts.at_most)
        case _:
            numbers = condition.number_range
            low = numbers.at_least if numbers.HasField("at_least") else float("-inf")
            return low <= float(value) and (not numbers.HasField("at_most") or float(value) <= numbers.at_most)
