"""Documents and collections. `import_documents` is in the clients: it streams requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quintet.v1 import rag_pb2

from quintet_client import inputs
from quintet_client.calls import OPEN, WRITE, Call, StreamCall, Stubs
from quintet_client.inputs import Document
from quintet_client.messages import make


def add_documents(
    stubs: Stubs, collection: str, documents: Iterable[Document | Mapping[str, object]], *, timeout: float | None = None
) -> Call[rag_pb2.AddDocumentsResponse]:
    """Add up to 128 documents; those with a known id are replaced. A new collection is created."""
    request = make(rag_pb2.AddDocumentsRequest, collection=collection, documents=inputs.documents(documents))
    return Call(stubs.rag.AddDocuments, request, timeout, WRITE)


def delete_documents(
    stubs: Stubs, collection: str, document_ids: str | Iterable[str], *, timeout: float | None = None
) -> Call[rag_pb2.DeleteDocumentsResponse]:
    """Remove up to 128 documents by id; unknown ids are ignored."""
    request = make(rag_pb2.DeleteDocumentsRequest, collection=collection, document_ids=inputs.as_list(document_ids))
    return Call(stubs.rag.DeleteDocuments, request, timeout, WRITE)


def list_documents(
    stubs: Stubs,
    collection: str | None = None,
    *,
    page_size: int | None = None,
    page_token: str | None = None,
    timeout: float | None = None,
) -> Call[rag_pb2.ListDocumentsResponse]:
    """List a page of a collection's documents by id, without texts; `next_page_token` requests the next page."""
    request = make(rag_pb2.ListDocumentsRequest, collection=collection, page_size=page_size, page_token=page_token)
    return Call(stubs.rag.ListDocuments, request, timeout)


def get_index(
    stubs: Stubs, collection: str | None = None, *, min_generation: int | None = None, timeout: float | None = None
) -> Call[rag_pb2.GetIndexResponse]:
    """Describe the state of a collection."""
    request = make(rag_pb2.GetIndexRequest, collection=collection, min_generation=min_generation)
    return Call(stubs.rag.GetIndex, request, timeout)


def create_collection(
    stubs: Stubs, collection: str, *, timeout: float | None = None
) -> Call[rag_pb2.CreateCollectionResponse]:
    """Create an empty collection."""
    return Call(stubs.rag.CreateCollection, make(rag_pb2.CreateCollectionRequest, collection=collection), timeout)


def delete_collection(
    stubs: Stubs, collection: str, *, timeout: float | None = None
) -> Call[rag_pb2.DeleteCollectionResponse]:
    """Delete a collection with all its generations. This cannot be undone."""
    request = make(rag_pb2.DeleteCollectionRequest, collection=collection)
    return Call(stubs.rag.DeleteCollection, request, timeout, WRITE)


def list_collections(
    stubs: Stubs, *, page_size: int | None = None, page_token: str | None = None, timeout: float | None = None
) -> Call[rag_pb2.ListCollectionsResponse]:
    """List a page of the collections by name; `next_page_token` requests the next page."""
    request = make(rag_pb2.ListCollectionsRequest, page_size=page_size, page_token=page_token)
    return Call(stubs.rag.ListCollections, request, timeout)


def list_generations(
    stubs: Stubs, collection: str | None = None, *, timeout: float | None = None
) -> Call[rag_pb2.ListGenerationsResponse]:
    """List the kept generations of a collection, newest first."""
    return Call(stubs.rag.ListGenerations, make(rag_pb2.ListGenerationsRequest, collection=collection), timeout)


def rollback(
    stubs: Stubs, collection: str, generation: int, *, timeout: float | None = None
) -> Call[rag_pb2.RollbackResponse]:
    """Serve the content of a kept generation again, as a new generation."""
    request = make(rag_pb2.RollbackRequest, collection=collection, generation=generation)
    return Call(stubs.rag.Rollback, request, timeout, WRITE)


def compact(stubs: Stubs, collection: str, *, timeout: float | None = None) -> Call[rag_pb2.CompactResponse]:
    """Fold the log of writes into a generation of files now."""
    return Call(stubs.rag.Compact, make(rag_pb2.CompactRequest, collection=collection), timeout, WRITE)


def reindex(stubs: Stubs, collection: str, *, timeout: float | None = None) -> StreamCall[rag_pb2.ReindexResponse]:
    """Embed all documents again: progress, then one done.

    The work goes on when the iterator is closed or the connection breaks; another call joins it.
    """
    return StreamCall(stubs.rag.Reindex, make(rag_pb2.ReindexRequest, collection=collection), timeout, OPEN)
