"""What is said of collections."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge

import numpy as np

from server.domain.models import ModelIdentity
from server.domain.rag import (
    CollectionState,
    CollectionSummary,
    DocumentInfo,
    DocumentPage,
    GenerationDescription,
    IndexDescription,
    IndexIdentity,
)
from server.vectorstore.collection import Collection
from server.vectorstore.segment import DocumentRecord, EmbedderRecord, Generation
from server.vectorstore.snapshot import Snapshot

_PAGE_CODE_POINTS = 500_000  # of titles, addresses and metadata; clients read 4 MiB by default
_FAULTS_SHOWN = 5


def identity(collection: Collection, snapshot: Snapshot | None = None) -> IndexIdentity:
    """The state that is served, or another one."""
    return IndexIdentity(collection.name, (snapshot or collection.snapshot).number)


def mismatch(name: str, theirs: EmbedderRecord, ours: EmbedderRecord) -> str:
    """Why a collection cannot be searched, and how it can be again."""
    return (
        f'collection "{name}" was made with embedder {theirs.name} {theirs.version}, '
        f"the server runs {ours.name} {ours.version}. Embed it again with: quintet reindex {name}"
    )


def _state(collection: Collection, embedder: EmbedderRecord) -> tuple[CollectionState, str]:
    made_with = collection.snapshot.base.embedder
    if made_with != embedder:
        return CollectionState.NEEDS_REINDEX, mismatch(collection.name, made_with, embedder)
    if collection.faults:
        shown = collection.faults[-_FAULTS_SHOWN:]
        return CollectionState.DEGRADED, "; ".join(shown)
    return CollectionState.READY, ""


def describe(collection: Collection, embedder: EmbedderRecord) -> IndexDescription:
    """What is served now, for a server that runs `embedder`."""
    snapshot = collection.snapshot
    base = snapshot.base
    state, message = _state(collection, embedder)
    return IndexDescription(
        identity(collection, snapshot),
        state,
        message,
        document_count=snapshot.document_count,
        passage_count=snapshot.passage_count,
        dimensions=base.vectors.shape[1],
        embedder=_model(base.embedder),
        size_bytes=base.size_bytes + collection.log_bytes,
        updated=snapshot.updated,
        fault_count=len(collection.faults),
        log_count=snapshot.log_count,
        index_type=base.index["type"] if base.index else "flat",
        recall_at_10=base.index["recall_at_10"] if base.index else 1.0,
    )


def describe_generation(generation: Generation) -> GenerationDescription:
    """A kept generation."""
    return GenerationDescription(
        generation.number,
        generation.created,
        len(generation.documents),
        len(generation.vectors),
        generation.size_bytes,
        _model(generation.embedder),
        generation.origin,
    )


def summaries(
    collections: Iterable[Collection], failures: Mapping[str, str], embedder: EmbedderRecord
) -> list[CollectionSummary]:
    """All collections, sorted by name."""
    found = [
        CollectionSummary(identity(each), *_state(each, embedder), each.snapshot.document_count) for each in collections
    ]
    found += (
        CollectionSummary(IndexIdentity(name, 0), CollectionState.FAILED, why, 0) for name, why in failures.items()
    )
    return sorted(found, key=lambda summary: summary.identity.collection)


def page(collection: Collection, after: str, limit: int) -> DocumentPage:
    """Up to `limit` documents with ids after `after`, fewer if they say much. Blocks."""
    snapshot = collection.snapshot
    found: list[DocumentInfo] = []
    size = 0
    for _, document in merge(_base(snapshot, after), _log(snapshot, after), key=lambda pair: pair[0]):
        if len(found) == limit or size > _PAGE_CODE_POINTS:
            return DocumentPage(tuple(found), complete=False, index=identity(collection, snapshot))
        found.append(DocumentInfo(document.id, document.title, document.uri, document.metadata, len(document.text)))
        size += (
            len(document.title) + len(document.uri) + sum(map(len, (*document.metadata, *document.metadata.values())))
        )
    return DocumentPage(tuple(found), complete=True, index=identity(collection, snapshot))


def _base(snapshot: Snapshot, after: str) -> Iterator[tuple[str, DocumentRecord]]:
    base, gone = snapshot.base, set(snapshot.gone.tolist())
    for at in range(bisect_right(base.ids, after), len(base.ids)):
        if (row := int(base.id_rows[at])) not in gone:
            yield base.ids[at], base.document(row)


def _log(snapshot: Snapshot, after: str) -> list[tuple[str, DocumentRecord]]:
    documents = (snapshot.overlay_documents[row] for row in np.flatnonzero(snapshot.alive()).tolist())
    return sorted(((each.id, each) for each in documents if each.id > after), key=lambda pair: pair[0])


def _model(record: EmbedderRecord) -> ModelIdentity:
    return ModelIdentity(record.name, record.version, record.digest)
