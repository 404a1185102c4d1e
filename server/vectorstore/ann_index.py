"""Finding the nearest of many vectors: comparing all of them while that is fast, beyond that an inverted file.

The inverted file is FAISS's IVF with 8-bit codes. Vectors lie in lists by their nearest centroid, a search compares
the codes of a few lists (nprobe), and the best are compared again by their own vectors, so that scores are exact.
nprobe is tuned when the index is built, for a recall@10 of at least TARGET_RECALL.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

FLAT_LIMIT = 50_000
TARGET_RECALL = 0.97
_TUNING_QUERIES = 200
_TRAINING_VECTORS = 50  # a list; FAISS requires 39 at least
_PART = 65_536

Vectors = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and rows, best first


@dataclass(frozen=True)
class AnnIndex:
    """An inverted file on disk, with what its segment's manifest says of it. `lists`: FAISS's index, memory-mapped."""

    path: Path
    lists: Any
    probes: int
    recall_at_10: float
    trained_on: int
    type: str = "ivf"


def open_index(path: Path, known: Mapping[str, Any], shape: tuple[int, ...]) -> AnnIndex:
    """The index of vectors of this shape. Raises ValueError, TypeError, KeyError, or FAISS's exceptions."""
    if known["type"] != AnnIndex.type:
        raise ValueError(f"its index is of the type {known['type']!r}")
    lists = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    if (lists.ntotal, lists.d) != shape:
        raise ValueError("the index does not fit the vectors")
    probes = max(1, min(int(known["probes"]), lists.nlist))
    return AnnIndex(path, lists, probes, float(known["recall_at_10"]), int(known["trained_on"]))


def build_index(vectors: Vectors, file: BinaryIO, before: AnnIndex | None) -> dict[str, Any]:
    """Write an index to the file; return the fields of its `AnnIndex`.

    The centroids of `before` are used again until the collection has doubled since they were trained.
    """
    faiss.omp_set_num_threads(1)  # of this thread: the other cores serve
    if before and 2 * before.trained_on >= len(vectors):
        index, trained_on = _emptied(before), before.trained_on
    else:
        index, trained_on = _trained(vectors), len(vectors)
    for start in range(0, len(vectors), _PART):
        index.add(np.ascontiguousarray(vectors[start : start + _PART]))
    probes, recall = _tuned(index, vectors)
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    return {"type": "ivf", "probes": probes, "recall_at_10": recall, "trained_on": trained_on}


def nearest(
    vectors: Vectors, index: AnnIndex | None, query: Vectors, count: int, *, among: Any, selected: int
) -> Found:
    """The `count` rows of `vectors` with the highest cosine with `query`, float32 [1, dimensions].

    `among` is a faiss.IDSelector of the rows that may be found, or None for all; `selected` is how many these are.
    """
    if index is None or selected <= FLAT_LIMIT:
        return exact(vectors, query, count, among)
    # The fewer rows may be found, the fewer of them each list has, so more lists are searched.
    spread = min(8, -(-len(vectors) // selected))
    settings = faiss.SearchParametersIVF(sel=among, nprobe=min(index.probes * spread, index.lists.nlist))
    return _approximate(index.lists, vectors, query, count, settings)


def exact(vectors: Vectors, query: Vectors, count: int, among: Any = None) -> Found:
    """The same by comparing all vectors."""
    count = min(count, len(vectors))
    if among is None and count:
        scores = vectors @ query[0]  # BLAS takes half of FAISS's time for a single query
        rows = np.sort(np.argpartition(scores, -count)[-count:])
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        return scores[rows], rows
    faiss.omp_set_num_threads(1)  # of this thread: the scheduler has one for every core already
    scores, rows = np.empty(count, np.float32), np.empty(count, np.int64)
    if count:
        asked, data, *out = (faiss.swig_ptr(array) for array in (query, vectors, scores, rows))
        faiss.knn_inner_product(asked, data, vectors.shape[1], 1, len(vectors), count, *out, among)
    found = rows >= 0
    return scores[found], rows[found]


def _approximate(index: Any, vectors: Vectors, query: Vectors, count: int, settings: Any) -> Found:
    faiss.omp_set_num_threads(1)
    _, found = index.search(query, max(32, 2 * count), params=settings)
    rows = np.sort(found[0][found[0] >= 0])
    scores = vectors[rows] @ query[0]
    best = np.argsort(-scores, kind="stable")[:count]
    return scores[best], rows[best]


def _trained(vectors: Vectors) -> Any:
    lists = 2 * round(len(vectors) ** 0.5)
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    count = min(len(vectors), _TRAINING_VECTORS * lists)
    chosen = np.random.default_rng(0).choice(len(vectors), count, replace=False)
    index.train(vectors[np.sort(chosen)])
    return index


def _emptied(before: AnnIndex) -> Any:
    """The trained index without its vectors. It is opened anew, because others search `before`."""
    try:
        index = faiss.read_index(str(before.path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:  # the collection was removed
        raise OSError(errno.EIO, str(error), before.path) from error
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    lists.this.disown()  # the index frees it
    index.replace_invlists(lists, True)
    index.ntotal = 0
    return index


def _tuned(index: Any, vectors: Vectors) -> tuple[int, float]:
    """Nprobe and its recall@10. Queries are vectors, moved to a cosine of 0.7 like a question to its answer."""
    chance = np.random.default_rng(1)
    queries = vectors[np.sort(chance.choice(len(vectors), _TUNING_QUERIES, replace=False))]
    queries = queries + chance.standard_normal(queries.shape, np.float32) / np.sqrt(queries.shape[1], dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, truth = faiss.knn(queries, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)
    probes = 4
    while True:
        settings = faiss.SearchParametersIVF(nprobe=min(probes, index.nlist))
        found = [_approximate(index, vectors, query[None], 10, settings)[1] for query in queries]
        recall = float(np.mean([np.isin(right, rows).mean() for right, rows in zip(truth, found, strict=True)]))
        if recall >= TARGET_RECALL or probes >= index.nlist:
            return probes, recall
        probes *= 2
