"""Searching: approximate where it is large, and with filters and deletions the same as asking each document."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document, MetadataFilter, NumberRange, TextRange, ValueIn
from server.vectorstore import ann_index
from server.vectorstore.admin import create_collection
from server.vectorstore.collection import Collection
from server.vectorstore.search import search
from server.vectorstore.segment import Content

EMBEDDER = ModelIdentity("embedder", "1", "")
KEYS, VALUES = ("a", "ab", "\U0010ffff"), ("", "1", "2.5", "-3", "x", "1e1", "nan", "\U0010ffff")


def clustered(count: int, seed: int, dimensions: int = 32) -> NDArray[np.float32]:
    """Vectors of length 1 around a few hundred centres."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((200, dimensions))
    vectors = centres[chance.integers(0, len(centres), count)] + chance.standard_normal((count, dimensions)) * 0.7
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def one_each(count: int) -> NDArray[np.int32]:
    """A passage a document."""
    return np.stack([np.arange(count), np.zeros(count), np.ones(count)], axis=1).astype(np.int32)


def document(number: int) -> Document:
    return Document(str(number), "text", metadata={"even": str(number % 2 == 0), "number": str(number)})


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Collection, NDArray[np.float32]]:
    """A collection that has an inverted file, and vectors of all its documents."""
    monkeypatch.setattr(ann_index, "FLAT_LIMIT", 2_000)
    vectors = clustered(4_000, 1)
    content = Content(EMBEDDER, 32, [document(number) for number in range(4_000)], one_each(4_000), [vectors])
    return create_collection(tmp_path, "large", content), vectors


def recall(
    collection: Collection, vectors: NDArray[np.float32], allowed: NDArray[np.bool_], *filters: MetadataFilter
) -> float:
    """Share of the true 10 best that are found."""
    hits = 0
    for query in clustered(50, 2):
        truth = {int(row) for row in np.argsort(np.where(allowed, -(vectors @ query), 9.0))[:10]}
        found = search(collection.snapshot, query[None], 10, filters)
        assert len(found) == 10
        assert all(abs(each.score - vectors[int(each.document_id)] @ query) < 1e-5 for each in found)
        hits += len(truth & {int(each.document_id) for each in found})
    return hits / 500


def test_recall(large: tuple[Collection, NDArray[np.float32]]) -> None:
    collection, vectors = large
    index = collection.snapshot.segment.ann
    assert index
    assert index.recall_at_10 >= 0.95
    everything = np.ones(len(vectors), np.bool_)
    assert recall(collection, vectors, everything) >= 0.95

    even = np.arange(len(vectors)) % 2 == 0
    assert recall(collection, vectors, even, ValueIn("even", ("True",))) >= 0.95  # as many as are still compared all
    most = np.arange(len(vectors)) >= 500
    assert recall(collection, vectors, most, NumberRange("number", at_least=500)) >= 0.95

    # Some are gone and others are new, in the log and then in the next generation, which has the old centroids.
    gone = tuple(str(number) for number in range(0, 4_000, 4))
    collection.commit(gone)
    added = clustered(300, 3)
    collection.commit((), tuple(document(4_000 + number) for number in range(300)), one_each(300), added)
    vectors = np.concatenate([vectors, added])
    kept = (np.arange(4_300) % 4 != 0) | (np.arange(4_300) >= 4_000)
    assert recall(collection, vectors, kept) >= 0.95
    collection.fold()
    assert collection.snapshot.segment.ann
    assert collection.snapshot.segment.ann.trained_on == 4_000
    assert recall(collection, vectors, kept) >= 0.95


BOUNDS = st.one_of(st.none(), st.sampled_from(VALUES))
NUMBERS = st.one_of(st.none(), st.sampled_from((-3.0, 0.0, 1.0, 2.5, 10.0)))
FILTERS = st.one_of(
    st.builds(ValueIn, st.sampled_from(KEYS), st.lists(st.sampled_from(VALUES), min_size=1).map(tuple)),
    st.builds(TextRange, st.sampled_from(KEYS), BOUNDS, BOUNDS, BOUNDS),
    st.builds(NumberRange, st.sampled_from(KEYS), NUMBERS, NUMBERS, NUMBERS),
)
METADATA = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))


def fulfils(metadata: dict[str, str], wanted: MetadataFilter) -> bool:
    """The meaning of a filter, spelled out."""
    if wanted.key not in metadata:
        return False
    value = metadata[wanted.key]
    if isinstance(wanted, ValueIn):
        return value in wanted.values
    if isinstance(wanted, TextRange):
        return not (
            (wanted.at_least is not None and value < wanted.at_least)
            or (wanted.at_most is not None and value > wanted.at_most)
            or (wanted.less_than is not None and value >= wanted.less_than)
        )
    if value not in {"1", "2.5", "-3", "1e1"}:
        return False
    number = float(value)
    return not (
        (wanted.at_least is not None and number < wanted.at_least)
        or (wanted.at_most is not None and number > wanted.at_most)
        or (wanted.less_than is not None and number >= wanted.less_than)
    )


@settings(max_examples=30, deadline=None)
@given(
    base=st.lists(METADATA, max_size=6),
    log=st.lists(METADATA, max_size=4),
    removed=st.sets(st.integers(0, 9)),
    queries=st.lists(st.lists(FILTERS, min_size=1, max_size=2), min_size=1, max_size=6),
)
def test_filters_mean_what_they_say(
    tmp_path_factory: pytest.TempPathFactory,
    base: list[dict[str, str]],
    log: list[dict[str, str]],
    removed: set[int],
    queries: list[list[MetadataFilter]],
) -> None:
    every = [Document(str(number), "text", metadata=each) for number, each in enumerate(base + log)]
    vectors = clustered(len(every), 0)
    old, new = every[: len(base)], every[len(base) :]
    content = Content(EMBEDDER, 32, old, one_each(len(old)), [vectors[: len(old)]])
    collection = create_collection(tmp_path_factory.mktemp("index"), "notes", content)
    collection.commit((), tuple(new), one_each(len(new)), vectors[len(old) :])
    collection.commit(tuple(map(str, removed)))
    for filters in queries:
        found = {each.document_id for each in search(collection.snapshot, clustered(1, 5), 100, filters)}
        assert found == {
            each.id
            for each in every
            if int(each.id) not in removed and all(fulfils(each.metadata, wanted) for wanted in filters)
        }
