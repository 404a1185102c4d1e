"""What is done with the content of a collection: comparing, cutting, merging, searching. All of it blocks briefly."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from server.engines.interfaces import Passage
from server.engines.passages import embedded_text, split
from server.stores.generation import Content, DocumentRecord


class Cut(NamedTuple):
    """Documents cut into passages: the rows of `Content.passages`, and what to embed for each."""

    passages: NDArray[np.int32]
    texts: list[str]


class Difference(NamedTuple):
    """Documents that a content does not have like this, and the ids of those among them that it does have."""

    changed: tuple[DocumentRecord, ...]
    updated_ids: frozenset[str]


def cut(documents: Sequence[DocumentRecord]) -> Cut:
    """Split every document into passages."""
    rows = [(owner, start, end) for owner, document in enumerate(documents) for start, end in split(document.text)]
    texts = [embedded_text(documents[owner].title, documents[owner].text[start:end]) for owner, start, end in rows]
    return Cut(np.array(rows, np.int32).reshape(-1, 3), texts)


def compare(content: Content | None, documents: Sequence[DocumentRecord]) -> Difference:
    """What has to be written so that `content` has `documents`."""
    known = {document.id: document for document in content.documents} if content else {}
    changed = tuple(document for document in documents if known.get(document.id) != document)
    return Difference(changed, frozenset(document.id for document in changed if document.id in known))


def merge(content: Content, dropped_ids: Collection[str], fresh: Content | None = None) -> Content:
    """`content` without some documents, then `fresh`. Vectors of the documents that stay are used again."""
    stays = np.array([document.id not in dropped_ids for document in content.documents], dtype=np.bool_)
    owners = content.passages[:, 0]
    rows = stays[owners]
    passages = content.passages[rows]
    passages[:, 0] = (np.cumsum(stays, dtype=np.int32) - 1)[owners[rows]]
    documents = tuple(document for document, kept in zip(content.documents, stays, strict=True) if kept)
    kept = Content(content.embedder, documents, passages, content.vectors[rows])
    if fresh is None:
        return kept
    shift = np.array([len(documents), 0, 0], dtype=np.int32)
    return Content(
        content.embedder,
        kept.documents + fresh.documents,
        np.concatenate([kept.passages, fresh.passages + shift]),
        np.concatenate([kept.vectors, fresh.vectors]),
    )


def search(content: Content, vector: NDArray[np.float32], top_k: int) -> tuple[Passage, ...]:
    """The passages whose vectors have the highest cosine with `vector`, float32 [1, dimensions], best first.

    This is FAISS's exact search without an index object: the vectors are searched where they lie, not copied.
    """
    count = min(top_k, len(content.vectors))
    if not count:
        return ()
    faiss.omp_set_num_threads(1)  # of this thread: lanes are one a core already
    scores, rows = faiss.knn(vector, content.vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    return tuple(_passage(content, row, score) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True))


def _passage(content: Content, row: int, score: float) -> Passage:
    owner, start, end = content.passages[row].tolist()
    document = content.documents[owner]
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
