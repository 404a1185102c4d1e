"""Finding the nearest of many vectors: comparing all of them while that is fast, above that an inverted file.

The inverted file is FAISS's IVF with 8-bit codes: vectors are sorted into lists by their nearest centroid, a search
compares the codes of a few lists, and the best are compared again by their own vectors, so scores are exact. How many
lists are searched is chosen when it is built, so that at least TARGET_RECALL of the true ten best are found.
"""

from typing import Any
from weakref import WeakKeyDictionary

import faiss
import numpy as np
from numpy.typing import NDArray

from server.vectorstore.files import HashedFile
from server.vectorstore.segment import INDEX, Generation

FLAT_LIMIT = 50_000
TARGET_RECALL = 0.97
_PROBED_QUERIES = 200
_TRAINED_PER_LIST = 50  # FAISS asks for 39 at least
_PART = 65_536
_READ_ONLY = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
_opened: WeakKeyDictionary[Generation, Any] = WeakKeyDictionary()


def build_index(vectors: NDArray[np.float32], file: HashedFile, before: Generation | None) -> dict[str, Any] | None:
    """Implements `Indexer`. Centroids are used again until the collection has doubled since they were trained."""
    if len(vectors) < FLAT_LIMIT:
        return None
    faiss.omp_set_num_threads(1)  # of this thread: the other cores serve
    if before and before.index and 2 * before.index["trained_on"] >= len(vectors):
        index, trained_on = _without_vectors(before), before.index["trained_on"]
    else:
        index, trained_on = _trained(vectors), len(vectors)
    for start in range(0, len(vectors), _PART):
        index.add(np.ascontiguousarray(vectors[start : start + _PART]))
    probes, recall = _calibrated(index, vectors)
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    return {"type": "ivf", "probes": probes, "recall_at_10": recall, "trained_on": trained_on}


def nearest(
    generation: Generation, vector: NDArray[np.float32], count: int, selector: Any, selected: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and rows of the `count` vectors nearest to `vector`, float32 [1, dimensions], best first.

    `selector` is a faiss.IDSelector of the rows that count, or None; `selected` is how many these are.
    """
    if generation.index is None or selected <= FLAT_LIMIT:
        return exact(generation.vectors, vector, count, selector)
    index = _open(generation)
    # The fewer rows count, the fewer of a list do, so more lists are searched.
    spread = min(8, -(-len(generation.vectors) // selected))
    probes = min(generation.index["probes"] * spread, index.nlist)
    settings = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    return _approximate(index, generation.vectors, vector, count, settings)


def exact(
    vectors: NDArray[np.float32], vector: NDArray[np.float32], count: int, selector: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The same by comparing all vectors, where they lie."""
    count = min(count, len(vectors))
    if selector is None and count:
        return _best(vectors @ vector[0], count)  # BLAS takes half of FAISS's time for a single vector
    faiss.omp_set_num_threads(1)  # of this thread: lanes are one a core already
    scores, rows = np.empty(count, np.float32), np.empty(count, np.int64)
    if count:
        pointers = [faiss.swig_ptr(array) for array in (vector, vectors, scores, rows)]
        query, rest, *out = pointers
        faiss.knn_inner_product(query, rest, vectors.shape[1], 1, len(vectors), count, *out, selector)
    found = rows >= 0
    return scores[found], rows[found]


def _best(scores: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` highest scores, at least one, and where they are."""
    rows = np.sort(np.argpartition(scores, -count)[-count:])
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return scores[rows], rows


def _approximate(
    index: Any, vectors: NDArray[np.float32], vector: NDArray[np.float32], count: int, settings: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    faiss.omp_set_num_threads(1)
    _, found = index.search(vector, max(32, 2 * count), params=settings)
    rows = np.sort(found[0][found[0] >= 0])
    scores = vectors[rows] @ vector[0]
    best = np.argsort(-scores, kind="stable")[:count]
    return scores[best], rows[best]


def _open(generation: Generation) -> Any:
    if (index := _opened.get(generation)) is None:
        index = _opened[generation] = faiss.read_index(str(generation.folder / INDEX), _READ_ONLY)
    return index


def _trained(vectors: NDArray[np.float32]) -> Any:
    lists = 2 * round(len(vectors) ** 0.5)
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).choice(len(vectors), min(len(vectors), _TRAINED_PER_LIST * lists), replace=False)
    index.train(vectors[np.sort(chosen)])
    return index


def _without_vectors(generation: Generation) -> Any:
    index = faiss.read_index(str(generation.folder / INDEX), _READ_ONLY)  # mapped: its lists are not read
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    lists.this.disown()  # the index frees it
    index.replace_invlists(lists, True)
    index.ntotal = 0
    return index


def _calibrated(index: Any, vectors: NDArray[np.float32]) -> tuple[int, float]:
    """How many lists to search, and the recall at 10 that this has.

    Queries are vectors of the collection, moved until their cosine with themselves is about 0.7: a question is that
    far from the passage that answers it.
    """
    chance = np.random.default_rng(1)
    queries = vectors[np.sort(chance.choice(len(vectors), _PROBED_QUERIES, replace=False))]
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
