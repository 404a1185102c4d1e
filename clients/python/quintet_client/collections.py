"""The client's methods for documents and collections. `aio_collections.py` has the same as coroutines."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from functools import cached_property

from quintet.v1 import rag_pb2, rag_pb2_grpc

from quintet_client import inputs
from quintet_client.caller import Caller
from quintet_client.inputs import Document


class Collections(Caller):
    """Documents go in and out; collections are made, listed, rolled back and built again."""

    @cached_property
    def _rag(self) -> rag_pb2_grpc.RagServiceStub:
        return rag_pb2_grpc.RagServiceStub(self._channel)

    def add_documents(
        self, collection: str, documents: Iterable[Document | Mapping[str, object]], *, timeout: float | None = None
    ) -> rag_pb2.AddDocumentsResponse:
        """Add up to 128 documents, or replace those with the same id. The collection is made if it is new."""
        request = rag_pb2.AddDocumentsRequest(collection=collection, documents=inputs.documents(documents))
        return self._unary(self._rag.AddDocuments, request, timeout)

    def import_documents(
        self, collection: str, documents: Iterable[Document | Mapping[str, object]], *, timeout: float | None = None
    ) -> rag_pb2.ImportDocumentsResponse:
        """Add any number of documents over one stream, as they come; what was sent before a failure stays.

        Sending everything again after one is safe, and nothing is embedded twice.
        """
        requests = inputs.imports(collection, documents)
        return self._upload(self._rag.ImportDocuments, rag_pb2.ImportDocumentsRequest, requests, timeout)

    def delete_documents(
        self, collection: str, document_ids: str | Iterable[str], *, timeout: float | None = None
    ) -> rag_pb2.DeleteDocumentsResponse:
        """Remove up to 128 documents by id; unknown ids are ignored."""
        request = rag_pb2.DeleteDocumentsRequest(collection=collection, document_ids=inputs.listed(document_ids))
        return self._unary(self._rag.DeleteDocuments, request, timeout)

    def list_documents(
        self,
        collection: str | None = None,
        *,
        page_size: int | None = None,
        page_token: str | None = None,
        timeout: float | None = None,
    ) -> rag_pb2.ListDocumentsResponse:
        """A page of a collection's documents without their texts, by id; `next_page_token` brings the next one."""
        request = rag_pb2.ListDocumentsRequest(collection=collection, page_size=page_size, page_token=page_token)
        return self._unary(self._rag.ListDocuments, request, timeout)

    def get_index(
        self, collection: str | None = None, *, min_generation: int | None = None, timeout: float | None = None
    ) -> rag_pb2.GetIndexResponse:
        """The state of a collection."""
        request = rag_pb2.GetIndexRequest(collection=collection, min_generation=min_generation)
        return self._unary(self._rag.GetIndex, request, timeout)

    def create_collection(self, collection: str, *, timeout: float | None = None) -> rag_pb2.CreateCollectionResponse:
        """Make an empty collection."""
        request = rag_pb2.CreateCollectionRequest(collection=collection)
        return self._unary(self._rag.CreateCollection, request, timeout)

    def delete_collection(self, collection: str, *, timeout: float | None = None) -> rag_pb2.DeleteCollectionResponse:
        """Remove a collection with all its generations, for good."""
        request = rag_pb2.DeleteCollectionRequest(collection=collection)
        return self._unary(self._rag.DeleteCollection, request, timeout)

    def list_collections(
        self, *, page_size: int | None = None, page_token: str | None = None, timeout: float | None = None
    ) -> rag_pb2.ListCollectionsResponse:
        """A page of the collections, by name; `next_page_token` brings the next one."""
        request = rag_pb2.ListCollectionsRequest(page_size=page_size, page_token=page_token)
        return self._unary(self._rag.ListCollections, request, timeout)

    def list_generations(
        self, collection: str | None = None, *, timeout: float | None = None
    ) -> rag_pb2.ListGenerationsResponse:
        """The kept generations of a collection, newest first."""
        request = rag_pb2.ListGenerationsRequest(collection=collection)
        return self._unary(self._rag.ListGenerations, request, timeout)

    def rollback(self, collection: str, generation: int, *, timeout: float | None = None) -> rag_pb2.RollbackResponse:
        """Serve the content of a kept generation again, as a new one."""
        request = rag_pb2.RollbackRequest(collection=collection, generation=generation)
        return self._unary(self._rag.Rollback, request, timeout)

    def compact(self, collection: str, *, timeout: float | None = None) -> rag_pb2.CompactResponse:
        """Fold the log of writes into a generation of files now."""
        return self._unary(self._rag.Compact, rag_pb2.CompactRequest(collection=collection), timeout)

    def reindex(
        self, collection: str, *, timeout: float | None = None
    ) -> Generator[rag_pb2.ReindexResponse, None, None]:
        """Embed all documents again: progress, then one done. Closing the iterator leaves the collection as it was."""
        return self._stream(self._rag.Reindex, rag_pb2.ReindexRequest(collection=collection), timeout)
