"""The retriever: what is added is found, writes are complete or absent, and nobody waits for a writer."""

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.engines import retriever as retriever_module
from server.engines.contents import compare, cut, merge, search
from server.engines.interfaces import Document, IndexIdentity, ModelDescription, ModelIdentity, ModelTask, Written
from server.engines.retriever import FaissRetriever
from server.errors import CollectionNotFound, DeadlineExceeded, InvalidRequest, ModelUnavailable, ServerOverloaded
from server.runtime.lanes import Lanes
from server.stores.collections import collection_names, open_collection, write_collection
from server.stores.generation import Content, DocumentRecord, EmbedderRecord

DIMENSIONS = 1024
CAT = Document("cat", "The cat sleeps on the warm mat.", "Cat", "file:cat", {"kind": "animal"})
DOG = Document("dog", "A dog chases the red ball.")
SUN = Document("sun", "The sun is a star made of hot plasma.")


def hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of length 1: each word counts in the dimension that its checksum names."""
    vectors = np.full((len(texts), DIMENSIONS), 1e-3, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            vectors[row, zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


class HashingEmbedder:
    """An embedder that knows words and no meanings. It waits while `gate` is clear."""

    def __init__(self, version: str = "1") -> None:
        identity = ModelIdentity("hashing", version, f"sha256:{version}")
        self.description = ModelDescription(identity, ModelTask.EMBEDDING, "numpy")
        self.gate = asyncio.Event()
        self.gate.set()
        self.embedded: list[str] = []

    async def embed(self, texts: Sequence[str], *, deadline: float) -> NDArray[np.float32]:
        self.embedded += texts
        if len(texts) > 1 or not texts[0].startswith("?"):  # queries pass
            await self.gate.wait()
        return hashed(texts)


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def lanes() -> Lanes:
    return Lanes(1, 16)


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
async def retriever(tmp_path: Path, embedder: HashingEmbedder, lanes: Lanes) -> AsyncIterator[FaissRetriever]:
    yield FaissRetriever(tmp_path, embedder, lanes)
    lanes.close()


def ids_of(index: Path, name: str = "notes") -> list[str]:
    return sorted(document.id for document in open_collection(index, name).content.documents)


async def test_what_was_added_is_found(retriever: FaissRetriever, embedder: HashingEmbedder) -> None:
    await retriever.add("notes", [CAT, DOG, SUN], deadline=soon())
    found = await retriever.retrieve("? cat sleeps on the mat", "notes", 2, deadline=soon())
    assert found.index == IndexIdentity("notes", 1)
    assert found.embedder == embedder.description.identity
    assert len(found.passages) == 2
    best = found.passages[0]
    assert (best.document_id, best.title, best.uri, best.metadata) == ("cat", "Cat", "file:cat", {"kind": "animal"})
    assert best.text == CAT.text == CAT.text[best.start : best.end]
    assert 1.0 >= best.score > found.passages[1].score
    assert len((await retriever.retrieve("? cat", "notes", 100, deadline=soon())).passages) == 3


async def test_long_documents_are_cut_and_embedded_under_their_title(
    retriever: FaissRetriever, embedder: HashingEmbedder
) -> None:
    paragraphs = [f"{word} " * 130 for word in ("apple", "boat", "cloud", "drum")]
    text = "\n\n".join(paragraphs)
    await retriever.add("notes", [Document("long", text, "Words")], deadline=soon())
    assert embedder.embedded == [f"Words\n{paragraph.strip()}" for paragraph in paragraphs]
    [best] = (await retriever.retrieve("? cloud", "notes", 1, deadline=soon())).passages
    assert best.text == paragraphs[2].strip() == text[best.start : best.end]


async def test_only_what_changed_is_written(
    retriever: FaissRetriever, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    first = await retriever.add("notes", [CAT, DOG], deadline=soon())
    assert first == Written(IndexIdentity("notes", 1), added=2)
    embedder.embedded.clear()
    assert await retriever.add("notes", [CAT, DOG], deadline=soon()) == Written(first.index, unchanged=2)
    assert embedder.embedded == []
    new_dog = Document("dog", "A dog sleeps, too.")
    assert await retriever.add("notes", [CAT, new_dog, SUN], deadline=soon()) == Written(
        IndexIdentity("notes", 2), added=1, updated=1, unchanged=1
    )
    assert embedder.embedded == [new_dog.text, SUN.text]
    [best] = (await retriever.retrieve("? dog sleeps", "notes", 1, deadline=soon())).passages
    assert best.text == new_dog.text
    deleted = await retriever.delete("notes", ["dog", "nobody"], deadline=soon())
    assert deleted == Written(IndexIdentity("notes", 3), deleted=1)
    assert await retriever.delete("notes", ["dog"], deadline=soon()) == Written(IndexIdentity("notes", 3))
    assert ids_of(tmp_path) == ["cat", "sun"]


async def test_everything_may_be_deleted(retriever: FaissRetriever) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    await retriever.delete("notes", ["cat"], deadline=soon())
    assert (await retriever.retrieve("? cat", "notes", 3, deadline=soon())).passages == ()
    assert retriever.describe("notes").document_count == 0
    await retriever.add("notes", [DOG], deadline=soon())
    assert len((await retriever.retrieve("? dog", "notes", 3, deadline=soon())).passages) == 1


async def test_collections_outlive_the_retriever(
    retriever: FaissRetriever, embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path
) -> None:
    await retriever.add("notes", [CAT, DOG], deadline=soon())
    await retriever.add("others", [SUN], deadline=soon())
    again = FaissRetriever(tmp_path, embedder, lanes)
    await again.open()
    for query, name in (("? dog ball", "notes"), ("? star", "others")):
        old, new = [await each.retrieve(query, name, 5, deadline=soon()) for each in (retriever, again)]
        assert old == new
    assert again.describe("notes") == retriever.describe("notes")
    assert again.describe("notes").passage_count == 2


async def test_unknown_collection(retriever: FaissRetriever) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    for call in (
        retriever.retrieve("? cat", "nots", 1, deadline=soon()),
        retriever.delete("nots", ["cat"], deadline=soon()),
    ):
        with pytest.raises(CollectionNotFound, match='"nots"; known: notes'):
            await call
    with pytest.raises(CollectionNotFound):
        retriever.describe("nots")


async def test_another_embedder(retriever: FaissRetriever, lanes: Lanes, tmp_path: Path) -> None:
    await retriever.add("wikipedia", [CAT], deadline=soon())
    other = FaissRetriever(tmp_path, HashingEmbedder("2"), lanes)
    await other.open()
    for call in (
        other.retrieve("? cat", "wikipedia", 1, deadline=soon()),
        other.add("wikipedia", [DOG], deadline=soon()),
        other.delete("wikipedia", ["cat"], deadline=soon()),
    ):
        with pytest.raises(ModelUnavailable, match=r"hashing 1, the server runs hashing 2.*make train ONLY=wikipedia"):
            await call
    assert other.describe("wikipedia").embedder.version == "1"
    assert (await other.add("notes", [DOG], deadline=soon())).added == 1


async def test_broken_collection_fails_alone(
    retriever: FaissRetriever, embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path
) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    await retriever.add("others", [SUN], deadline=soon())
    (tmp_path / "notes" / "00000001" / "vectors.npy").write_bytes(b"")
    again = FaissRetriever(tmp_path, embedder, lanes)
    await again.open()
    with pytest.raises(ModelUnavailable, match='"notes" has no generation that is whole'):
        await again.retrieve("? cat", "notes", 1, deadline=soon())
    assert (await again.retrieve("? sun", "others", 1, deadline=soon())).passages


async def test_limits(retriever: FaissRetriever, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=re.escape("documents[2].id: is also that of documents[0]")):
        await retriever.add("notes", [CAT, DOG, CAT], deadline=soon())
    monkeypatch.setattr(retriever_module, "MAX_PASSAGES", 2)
    await retriever.add("notes", [CAT, DOG], deadline=soon())
    with pytest.raises(InvalidRequest, match=r"documents: .* 3 passages; 2 is the limit"):
        await retriever.add("notes", [SUN], deadline=soon())
    monkeypatch.setattr(retriever_module, "MAX_COLLECTIONS", 1)
    with pytest.raises(InvalidRequest, match="collection: is new"):
        await retriever.add("others", [SUN], deadline=soon())
    with pytest.raises(DeadlineExceeded):
        await retriever.add("notes", [SUN], deadline=soon(-1.0))
    assert ids_of(tmp_path) == ["cat", "dog"]
    assert collection_names(tmp_path) == ["notes"]


async def test_searching_never_waits_for_writing(retriever: FaissRetriever, embedder: HashingEmbedder) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    embedder.gate.clear()
    writing = asyncio.create_task(retriever.add("notes", [DOG], deadline=soon()))
    await asyncio.sleep(0.05)
    assert (await retriever.retrieve("? dog", "notes", 5, deadline=soon())).index.generation == 1
    embedder.gate.set()
    await writing
    assert (await retriever.retrieve("? dog", "notes", 5, deadline=soon())).index.generation == 2


async def test_writers_take_turns(retriever: FaissRetriever, embedder: HashingEmbedder, tmp_path: Path) -> None:
    embedder.gate.clear()
    calls = [retriever.add("notes", [Document(str(i), f"text {i}")], deadline=soon()) for i in range(11)]
    writing = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0.1)
    embedder.gate.set()
    results = await asyncio.gather(*writing, return_exceptions=True)
    written = [result.index.generation for result in results if isinstance(result, Written)]
    assert written == list(range(1, 10))
    assert [type(result) for result in results if not isinstance(result, Written)] == [ServerOverloaded] * 2
    assert ids_of(tmp_path) == [str(i) for i in range(9)]


async def test_cancelled_write_is_complete_or_absent(
    retriever: FaissRetriever, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    for delay in (0.0, 0.001, 0.003, 0.01, 0.03):
        call = asyncio.create_task(retriever.add("notes", [Document(f"at {delay}", "text")], deadline=soon()))
        await asyncio.sleep(delay)
        call.cancel()
        await asyncio.wait({call})
        assert retriever.describe("notes").identity.generation == open_collection(tmp_path, "notes").number
    assert (await retriever.add("notes", [DOG], deadline=soon())).added == 1


async def test_what_another_process_wrote_is_kept(retriever: FaissRetriever, tmp_path: Path) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    theirs = cut([DocumentRecord("sun", SUN.text)])
    record = open_collection(tmp_path, "notes").content.embedder
    content = Content(record, (DocumentRecord("sun", SUN.text),), theirs.passages, hashed(theirs.texts))
    write_collection(tmp_path, "notes", content)
    assert (await retriever.add("notes", [DOG], deadline=soon())).index.generation == 3
    assert ids_of(tmp_path) == ["dog", "sun"]


TEXTS = st.text("abc. ", max_size=30)


@given(st.lists(st.tuples(st.dictionaries(st.sampled_from("xyz"), TEXTS), st.sets(st.sampled_from("xyz"))), max_size=5))
def test_contents_follow_a_dictionary(steps: list[tuple[dict[str, str], set[str]]]) -> None:
    """Whatever is added, replaced and deleted: the content is that of a dictionary, each vector that of its passage."""
    embedder = EmbedderRecord("hashing", "1", "")
    content = Content(embedder, (), np.empty((0, 3), np.int32), hashed([]))
    expected: dict[str, str] = {}
    for added, deleted in steps:
        changed, updated_ids = compare(content, [DocumentRecord(key, text) for key, text in added.items()])
        assert {document.id for document in changed} == {k for k, text in added.items() if expected.get(k) != text}
        assert updated_ids == {document.id for document in changed} & expected.keys()
        passages, texts = cut(changed)
        content = merge(content, updated_ids, Content(embedder, changed, passages, hashed(texts)))
        content = merge(content, deleted)
        expected = {key: text for key, text in {**expected, **added}.items() if key not in deleted}
        assert {document.id: document.text for document in content.documents} == expected
        for (owner, start, end), vector in zip(content.passages.tolist(), content.vectors, strict=True):
            assert np.allclose(vector, hashed([content.documents[owner].text[start:end]])[0])
        assert len(content.passages) == len(cut(content.documents).passages)
        found = search(content, hashed(["a"]), 100)
        assert sorted(passage.score for passage in found) == [passage.score for passage in found[::-1]]
        assert len(found) == len(content.passages)
