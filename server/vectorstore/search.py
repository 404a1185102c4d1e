"""Searching a snapshot: its generation and its log, with what is gone or filtered out left out, merged."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import faiss
import numpy as np
from numpy.typing import NDArray

from server.domain.rag import MetadataFilter, Passage
from server.vectorstore.ann_index import exact, nearest
from server.vectorstore.filters import base_documents, log_documents
from server.vectorstore.segment import DocumentRecord
from server.vectorstore.snapshot import Snapshot

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
_selectors: WeakKeyDictionary[Snapshot, Any] = WeakKeyDictionary()
_NOTHING: Found = (np.empty(0, np.float32), np.empty(0, np.int64))


def search(
    snapshot: Snapshot, vector: NDArray[np.float32], top_k: int, filters: Sequence[MetadataFilter] = ()
) -> tuple[Passage, ...]:
    """The passages whose vectors have the highest cosine with `vector`, float32 [1, dimensions], best first.

    Only those of documents that fulfil all filters. Blocks.
    """
    old_scores, old_rows = _in_base(snapshot, vector, top_k, filters)
    new_scores, new_rows = _in_log(snapshot, vector, top_k, filters)
    scores = np.concatenate([old_scores, new_scores])
    rows = np.concatenate([old_rows, -1 - new_rows])  # negative ones are those of the log
    best = np.argsort(-scores, kind="stable")[:top_k]
    return tuple(
        _passage(snapshot, row, score) for row, score in zip(rows[best].tolist(), scores[best].tolist(), strict=True)
    )


def _in_base(snapshot: Snapshot, vector: NDArray[np.float32], top_k: int, filters: Sequence[MetadataFilter]) -> Found:
    base, gone = snapshot.base, snapshot.gone_passages
    if not filters:
        return nearest(base, vector, top_k, _all_but_gone(snapshot), len(base.vectors) - len(gone))
    documents = base_documents(base.terms, filters)
    documents = documents[np.isin(documents, snapshot.gone, invert=True)]
    wanted = np.zeros(len(base.documents), np.bool_)
    wanted[documents] = True
    mask = np.repeat(wanted, np.diff(base.first))
    selected = int(np.count_nonzero(mask))
    return nearest(base, vector, top_k, _bitmap(mask), selected) if selected else _NOTHING


def _in_log(snapshot: Snapshot, vector: NDArray[np.float32], top_k: int, filters: Sequence[MetadataFilter]) -> Found:
    if not len(snapshot.vectors):
        return _NOTHING
    wanted = snapshot.alive()
    if filters:
        fulfilling = np.zeros_like(wanted)
        fulfilling[log_documents(snapshot, filters)] = True
        wanted &= fulfilling
    mask = wanted[snapshot.passages[:, 0]]
    return exact(snapshot.vectors, vector, top_k, None if mask.all() else _bitmap(mask))


def _all_but_gone(snapshot: Snapshot) -> Any:
    """The selector is made once for a snapshot; copying all rows into a set is slow beside a search."""
    if not len(snapshot.gone_passages):
        return None
    if (selector := _selectors.get(snapshot)) is None:
        selector = _selectors[snapshot] = faiss.IDSelectorNot(faiss.IDSelectorBatch(snapshot.gone_passages))
    return selector


def _bitmap(mask: NDArray[np.bool_]) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _passage(snapshot: Snapshot, row: int, score: float) -> Passage:
    if row >= 0:
        owner, start, end = snapshot.base.passages[row].tolist()
        document: DocumentRecord = snapshot.base.document(owner)
    else:
        owner, start, end = snapshot.passages[-1 - row].tolist()
        document = snapshot.overlay_documents[owner]
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
