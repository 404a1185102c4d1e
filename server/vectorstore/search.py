"""Searching and listing a snapshot: its segment and its memtable together, without what was deleted or filtered out."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import merge
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from server.domain.rag import Document, MetadataFilter, Passage
from server.vectorstore.ann_index import Found, exact, nearest
from server.vectorstore.metadata_index import matching_rows
from server.vectorstore.snapshot import Snapshot

_NOTHING: Found = (np.empty(0, np.float32), np.empty(0, np.int64))


def search(
    snapshot: Snapshot, query: NDArray[np.float32], top_k: int, filters: Sequence[MetadataFilter] = ()
) -> tuple[Passage, ...]:
    """The passages whose vectors have the highest cosine with `query`, float32 [1, dimensions], best first.

    Only those of documents that fulfil all filters. Blocks.
    """
    old_scores, old_rows = _in_segment(snapshot, query, top_k, filters)
    new_scores, new_rows = _in_memtable(snapshot, query, top_k, filters)
    scores = np.concatenate([old_scores, new_scores])
    rows = np.concatenate([old_rows, -1 - new_rows])  # negative ones are those of the memtable
    best = np.argsort(-scores, kind="stable")[:top_k]
    return tuple(
        _passage(snapshot, row, score) for row, score in zip(rows[best].tolist(), scores[best].tolist(), strict=True)
    )


def _in_segment(snapshot: Snapshot, query: NDArray[np.float32], top_k: int, filters: Sequence[MetadataFilter]) -> Found:
    segment, deleted = snapshot.segment, snapshot.deleted_passages
    if not filters:
        among = snapshot.not_deleted if len(deleted) else None
        selected = len(segment.vectors) - len(deleted)
    else:
        wanted = np.zeros(len(segment.documents), np.bool_)
        wanted[segment.metadata.matching(filters)] = True
        wanted[snapshot.deleted] = False
        mask = np.repeat(wanted, np.diff(segment.passage_starts))
        among, selected = _bitmap(mask), int(np.count_nonzero(mask))
        if not selected:
            return _NOTHING
    return nearest(segment.vectors, segment.ann, query, top_k, among=among, selected=selected)


def _in_memtable(
    snapshot: Snapshot, query: NDArray[np.float32], top_k: int, filters: Sequence[MetadataFilter]
) -> Found:
    if not len(snapshot.vectors):
        return _NOTHING
    wanted = snapshot.live()
    if filters:
        rows = matching_rows(snapshot.values, filters)
        matching = np.zeros_like(wanted)
        matching[rows[rows < len(wanted)]] = True  # the writer may have added more
        wanted &= matching
    mask = wanted[snapshot.passages[:, 0]]
    return exact(snapshot.vectors, query, top_k, None if mask.all() else _bitmap(mask))


def _bitmap(mask: NDArray[np.bool_]) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _passage(snapshot: Snapshot, row: int, score: float) -> Passage:
    if row >= 0:
        owner, start, end = snapshot.segment.passages[row].tolist()
        document = snapshot.segment.document(owner)
    else:
        owner, start, end = snapshot.passages[-1 - row].tolist()
        document = snapshot.documents[owner]
    return Passage(
        document_id=document.id,
        title=document.title,
        text=document.text[start:end],
        score=max(-1.0, min(1.0, score)),  # rounding may lead outside
        uri=document.uri,
        metadata=document.metadata,
        start=start,
        end=end,
    )


def documents_after(snapshot: Snapshot, after: str) -> Iterator[Document]:
    """Documents with ids after `after`, sorted by id. Reading blocks."""
    segment, deleted = snapshot.segment, set(snapshot.deleted.tolist())
    rows = (int(segment.id_rows[at]) for at in range(bisect_right(segment.ids, after), len(segment.ids)))
    old = (segment.document(row) for row in rows if row not in deleted)
    new = (snapshot.documents[row] for row in np.flatnonzero(snapshot.live()).tolist())
    return merge(old, sorted((d for d in new if d.id > after), key=_id), key=_id)


def _id(document: Document) -> str:
    return document.id
