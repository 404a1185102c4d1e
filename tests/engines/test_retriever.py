"""The retriever: what is added is found, writes are complete or absent, and nobody waits for a writer."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.engines import keeper
from server.engines import retriever as retriever_module
from server.engines.interfaces import (
    CollectionState,
    Document,
    IndexDescription,
    IndexIdentity,
    NumberRange,
    Query,
    ReindexProgress,
    TextRange,
    ValueIn,
    Written,
)
from server.engines.retriever import FaissRetriever
from server.engines.vector_index import build_index
from server.errors import (
    CollectionBroken,
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    EmbedderMismatch,
    GenerationNotFound,
    GenerationNotReached,
    InvalidRequest,
    ServerOverloaded,
)
from server.runtime.lanes import Lanes
from server.stores.collection import Collection
from server.stores.home import collection_names
from tests.engines.hashing import CAT, DOG, SUN, HashingEmbedder
from tests.waiting import until


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


def reopened(index: Path, name: str = "notes") -> Collection:
    """What another process would read from the disk now."""
    return Collection(index / name, build_index)


def ids_of(index: Path, name: str = "notes") -> list[str]:
    return sorted(document.id for document in reopened(index, name).snapshot.content().documents)


async def described(retriever: FaissRetriever, name: str = "notes") -> IndexDescription:
    return await retriever.describe(name, deadline=soon())


async def test_what_was_added_is_found(retriever: FaissRetriever, embedder: HashingEmbedder) -> None:
    await retriever.add("notes", [CAT, DOG, SUN], deadline=soon())
    found = await retriever.retrieve(Query("? cat sleeps on the mat", "notes", 2), deadline=soon())
    assert found.index == IndexIdentity("notes", 1)
    assert found.embedder == embedder.description.identity
    assert len(found.passages) == 2
    best = found.passages[0]
    assert (best.document_id, best.title, best.uri, best.metadata) == ("cat", "Cat", "file:cat", {"kind": "animal"})
    assert best.text == CAT.text == CAT.text[best.start : best.end]
    assert 1.0 >= best.score > found.passages[1].score
    assert len((await retriever.retrieve(Query("? cat", "notes", 100), deadline=soon())).passages) == 3


async def test_long_documents_are_cut_and_embedded_under_their_title(
    retriever: FaissRetriever, embedder: HashingEmbedder
) -> None:
    paragraphs = [f"{word} " * 130 for word in ("apple", "boat", "cloud", "drum")]
    text = "\n\n".join(paragraphs)
    await retriever.add("notes", [Document("long", text, "Words")], deadline=soon())
    assert embedder.embedded == [f"Words\n{paragraph.strip()}" for paragraph in paragraphs]
    [best] = (await retriever.retrieve(Query("? cloud", "notes", 1), deadline=soon())).passages
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
    [best] = (await retriever.retrieve(Query("? dog sleeps", "notes", 1), deadline=soon())).passages
    assert best.text == new_dog.text
    deleted = await retriever.delete("notes", ["dog", "nobody"], deadline=soon())
    assert deleted == Written(IndexIdentity("notes", 3), deleted=1)
    assert await retriever.delete("notes", ["dog"], deadline=soon()) == Written(IndexIdentity("notes", 3))
    assert ids_of(tmp_path) == ["cat", "sun"]


async def test_everything_may_be_deleted(retriever: FaissRetriever) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    await retriever.delete("notes", ["cat"], deadline=soon())
    assert (await retriever.retrieve(Query("? cat", "notes", 3), deadline=soon())).passages == ()
    assert (await described(retriever)).document_count == 0
    await retriever.add("notes", [DOG], deadline=soon())
    assert len((await retriever.retrieve(Query("? dog", "notes", 3), deadline=soon())).passages) == 1


async def test_collections_outlive_the_retriever(
    retriever: FaissRetriever, embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path
) -> None:
    await retriever.add("notes", [CAT, DOG], deadline=soon())
    await retriever.add("others", [SUN], deadline=soon())
    again = FaissRetriever(tmp_path, embedder, lanes)
    await again.open()
    for query, name in (("? dog ball", "notes"), ("? star", "others")):
        old, new = [await each.retrieve(Query(query, name, 5), deadline=soon()) for each in (retriever, again)]
        assert old == new
    assert await described(again) == await described(retriever)
    assert (await described(again)).passage_count == 2
    await again.close()


async def test_unknown_collection(retriever: FaissRetriever) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    for call in (
        retriever.retrieve(Query("? cat", "nots", 1), deadline=soon()),
        retriever.delete("nots", ["cat"], deadline=soon()),
    ):
        with pytest.raises(CollectionNotFound, match='"nots"; known: notes'):
            await call
    with pytest.raises(CollectionNotFound):
        await retriever.describe("nots", deadline=soon())


async def test_another_embedder(retriever: FaissRetriever, lanes: Lanes, tmp_path: Path) -> None:
    await retriever.add("notes", [CAT, DOG], deadline=soon())
    await retriever.delete("notes", ["dog"], deadline=soon())
    other = FaissRetriever(tmp_path, HashingEmbedder("2"), lanes)
    await other.open()
    for call in (
        other.retrieve(Query("? cat", "notes", 1), deadline=soon()),
        other.add("notes", [DOG], deadline=soon()),
        other.delete("notes", ["cat"], deadline=soon()),
    ):
        with pytest.raises(EmbedderMismatch, match=r"hashing 1, the server runs hashing 2.*quintet reindex notes"):
            await call
    found = await described(other)
    assert (found.embedder.version, found.state) == ("1", CollectionState.NEEDS_REINDEX)
    assert (await other.add("others", [DOG], deadline=soon())).added == 1

    events = [event async for event in other.reindex("notes", deadline=soon())]
    assert events == [ReindexProgress(0, 1), ReindexProgress(1, 1), IndexIdentity("notes", 3)]
    [best] = (await other.retrieve(Query("? cat sleeps", "notes", 5), deadline=soon())).passages
    assert (best.document_id, best.metadata) == ("cat", CAT.metadata)
    found = await described(other)
    assert (found.embedder.version, found.state, found.document_count) == ("2", CollectionState.READY, 1)
    _, kept = await other.generations("notes")
    assert [(each.number, each.origin) for each in kept] == [(3, "reindex"), (0, "create")]
    await other.close()


async def test_a_reindexing_that_is_cancelled(
    retriever: FaissRetriever, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    embedder.gate.clear()

    async def reindex() -> list[object]:
        return [event async for event in retriever.reindex("notes", deadline=soon())]

    work = asyncio.create_task(reindex())
    await until(lambda: embedder.embedded[-1] == "notes")
    work.cancel()
    await asyncio.wait({work})
    embedder.gate.set()
    assert (await retriever.add("notes", [DOG], deadline=soon())).index.generation == 2
    assert ids_of(tmp_path) == ["cat", "dog"]


async def test_an_empty_collection_can_be_reindexed(retriever: FaissRetriever) -> None:
    await retriever.create("notes", deadline=soon())
    *_, last = [event async for event in retriever.reindex("notes", deadline=soon())]
    assert last == IndexIdentity("notes", 1)


async def test_broken_collection_fails_alone(
    retriever: FaissRetriever, embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path
) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    await retriever.add("others", [SUN], deadline=soon())
    (tmp_path / "notes" / "00000000" / "vectors.npy").write_bytes(b"")
    again = FaissRetriever(tmp_path, embedder, lanes)
    await again.open()
    with pytest.raises(CollectionBroken, match=r'"notes" has no generation that is whole.*vectors.npy.*Delete it'):
        await again.retrieve(Query("? cat", "notes", 1), deadline=soon())
    assert [each.state for each in again.collections()] == [CollectionState.FAILED, CollectionState.READY]
    assert (await again.retrieve(Query("? sun", "others", 1), deadline=soon())).passages
    await again.drop("notes", deadline=soon())
    assert (await again.add("notes", [CAT], deadline=soon())).added == 1
    await again.close()


async def test_limits(retriever: FaissRetriever, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=re.escape("documents[2].id: is also that of documents[0]")):
        await retriever.add("notes", [CAT, DOG, CAT], deadline=soon())
    monkeypatch.setattr(keeper, "MAX_PASSAGES", 2)
    await retriever.add("notes", [CAT, DOG], deadline=soon())
    with pytest.raises(InvalidRequest, match=r"documents: .* 3 passages; 2 is the limit"):
        await retriever.add("notes", [SUN], deadline=soon())
    monkeypatch.setattr(keeper, "MAX_COLLECTIONS", 1)
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
    assert (await retriever.retrieve(Query("? dog", "notes", 5), deadline=soon())).index.generation == 1
    embedder.gate.set()
    await writing
    assert (await retriever.retrieve(Query("? dog", "notes", 5), deadline=soon())).index.generation == 2


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
        assert (await described(retriever)).identity.generation == reopened(tmp_path).snapshot.number
    assert (await retriever.add("notes", [DOG], deadline=soon())).added == 1


async def test_only_the_metadata_changed(retriever: FaissRetriever, embedder: HashingEmbedder) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    await retriever.compact("notes", deadline=soon())
    embedder.embedded.clear()
    for kind in ("pet", "friend"):  # from the generation, then from the log
        changed = replace(CAT, metadata={"kind": kind})
        assert (await retriever.add("notes", [changed], deadline=soon())).updated == 1
        [best] = (await retriever.retrieve(Query("? cat sleeps", "notes", 5), deadline=soon())).passages
        assert (best.text, best.metadata) == (CAT.text, {"kind": kind})
    assert embedder.embedded == ["? cat sleeps"] * 2


async def test_filters(retriever: FaissRetriever) -> None:
    pets = [
        Document(name, f"The {name} eats.", metadata={"kind": kind, "legs": legs, "born": born})
        for name, kind, legs, born in (
            ("cat", "mammal", "4", "2020-05-01"),
            ("bat", "mammal", "2", "2021-01-01"),
            ("owl", "bird", "2", "2021-12-31"),
            ("eel", "fish", "none", "2022-01-01"),
        )
    ]

    async def found(*filters: ValueIn | TextRange | NumberRange) -> set[str]:
        query = Query("? eats", "pets", 10, filters)
        return {passage.document_id for passage in (await retriever.retrieve(query, deadline=soon())).passages}

    async def check() -> None:
        assert await found(ValueIn("kind", ("mammal",))) == {"cat", "bat"}
        assert await found(ValueIn("kind", ("bird", "fish", "no"))) == {"owl", "eel"}
        assert await found(NumberRange("legs", at_least=2, less_than=4)) == {"bat", "owl"}
        assert await found(NumberRange("legs", at_most=4)) == {"cat", "bat", "owl"}
        assert await found(TextRange("born", at_least="2021", less_than="2022")) == {"bat", "owl"}
        assert await found(TextRange("born", at_most="2021-01-01")) == {"cat", "bat"}
        assert await found(ValueIn("kind", ("mammal",)), NumberRange("legs", at_most=3)) == {"bat"}
        assert await found(ValueIn("color", ("red",))) == set()

    await retriever.add("pets", pets[:2], deadline=soon())
    await retriever.compact("pets", deadline=soon())
    await retriever.add("pets", pets[2:], deadline=soon())
    await check()  # two in the generation, two in the log
    await retriever.compact("pets", deadline=soon())
    await check()
    await retriever.add("pets", [replace(pets[0], metadata={"kind": "bird"})], deadline=soon())
    assert await found(ValueIn("kind", ("mammal",))) == {"bat"}
    assert await found(ValueIn("kind", ("bird",))) == {"owl", "cat"}


async def test_collections_come_and_go(retriever: FaissRetriever, tmp_path: Path) -> None:
    assert await retriever.create("notes", deadline=soon()) == IndexIdentity("notes", 0)
    with pytest.raises(CollectionExists):
        await retriever.create("notes", deadline=soon())
    assert (await retriever.retrieve(Query("? cat", "notes", 1), deadline=soon())).passages == ()
    await retriever.add("notes", [CAT], deadline=soon())
    assert [(each.identity.generation, each.document_count) for each in retriever.collections()] == [(1, 1)]
    assert await retriever.drop("notes", deadline=soon()) == IndexIdentity("notes", 1)
    assert retriever.collections() == []
    assert os.listdir(tmp_path) == []
    with pytest.raises(CollectionNotFound):
        await retriever.drop("notes", deadline=soon())


async def test_rollback_can_be_rolled_back(retriever: FaissRetriever, tmp_path: Path) -> None:
    await retriever.add("notes", [CAT], deadline=soon())
    await retriever.compact("notes", deadline=soon())
    await retriever.add("notes", [DOG], deadline=soon())
    with pytest.raises(GenerationNotFound, match="keeps no generation 2; it keeps: 1, 0"):
        await retriever.rollback("notes", 2, deadline=soon())
    assert await retriever.rollback("notes", 1, deadline=soon()) == IndexIdentity("notes", 3)
    assert ids_of(tmp_path) == ["cat"]
    served, kept = await retriever.generations("notes")
    assert served == IndexIdentity("notes", 3)
    assert [(each.number, each.origin) for each in kept] == [(3, "rollback to 1"), (2, "fold"), (1, "fold")]
    assert (tmp_path / "notes" / "00000003" / "vectors.npy").stat().st_nlink == 2
    await retriever.add("notes", [SUN], deadline=soon())
    assert await retriever.rollback("notes", 2, deadline=soon()) == IndexIdentity("notes", 5)
    assert ids_of(tmp_path) == ["cat", "dog"]


async def test_documents_in_pages(retriever: FaissRetriever) -> None:
    names = [f"{number:02}" for number in range(10)]
    await retriever.add("notes", [Document(name, "text", f"T{name}") for name in names[:6]], deadline=soon())
    await retriever.compact("notes", deadline=soon())
    await retriever.add("notes", [Document(name, "text", f"T{name}") for name in names[4:]], deadline=soon())
    await retriever.delete("notes", ["03"], deadline=soon())
    seen: list[str] = []
    while True:
        page = await retriever.documents("notes", seen[-1] if seen else "", 4)
        assert all((each.title, each.text_length) == (f"T{each.id}", 4) for each in page.documents)
        seen += (each.id for each in page.documents)
        if page.complete:
            break
        assert len(page.documents) == 4
    assert seen == [name for name in names if name != "03"]


async def test_two_processes(
    retriever: FaissRetriever, embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path
) -> None:
    """A second retriever over the same folder stands for another process: it shares nothing with the first."""
    await retriever.add("notes", [CAT], deadline=soon())
    other = FaissRetriever(tmp_path, embedder, lanes)
    await other.open()
    written = await retriever.add("notes", [DOG], deadline=soon())
    query = Query("? dog", "notes", 5, min_generation=written.index.generation)
    assert len((await other.retrieve(query, deadline=soon())).passages) == 2
    await retriever.compact("notes", deadline=soon())
    assert (await other.add("notes", [SUN], deadline=soon())).index.generation == 3
    assert (await retriever.add("notes", [replace(SUN, title="Sun")], deadline=soon())).updated == 1
    await retriever.rollback("notes", 2, deadline=soon())
    await until(lambda: other.collections()[0].identity.generation == 5, seconds=3)
    assert other.collections()[0].document_count == 2
    await retriever.drop("notes", deadline=soon())
    await until(lambda: other.collections() == [], seconds=3)
    await other.close()


async def test_a_generation_that_never_comes(retriever: FaissRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever_module, "_REACH_SECONDS", 0.1)
    await retriever.add("notes", [CAT], deadline=soon())
    with pytest.raises(GenerationNotReached, match="at generation 1, not yet at 2"):
        await retriever.retrieve(Query("? cat", "notes", 1, min_generation=2), deadline=soon())
    with pytest.raises(GenerationNotReached):
        await retriever.describe("notes", 2, deadline=soon())


async def test_folding_when_due(
    embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engines.catalogue.FOLD_PASSAGES", 8)
    retriever = FaissRetriever(tmp_path, embedder, lanes)
    await retriever.open()
    for number in range(20):
        await retriever.add("notes", [Document(str(number), f"text {number}")], deadline=soon())
    await until(lambda: reopened(tmp_path).snapshot.log_count < 8)
    assert len((await retriever.retrieve(Query("? text", "notes", 50), deadline=soon())).passages) == 20
    await retriever.close()


async def test_freshness_and_whole_batches(
    embedder: HashingEmbedder, lanes: Lanes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers never fail and never see a part of a batch, while batches replace each other and folds go on."""
    monkeypatch.setattr("server.engines.catalogue.FOLD_PASSAGES", 40)
    retriever = FaissRetriever(tmp_path, embedder, Lanes(2, 64))
    await retriever.open()
    size, rounds = 5, 30
    ended = asyncio.Event()
    seen: set[str] = set()

    async def read() -> None:
        last = 0
        while not ended.is_set():
            found = await retriever.retrieve(Query("? batch", "notes", 50), deadline=soon())
            batches = {passage.metadata["batch"] for passage in found.passages}
            assert len(found.passages) == size, found
            assert len(batches) == 1, found
            assert batches == {str(found.index.generation)}
            assert found.index.generation >= last, "numbers never go back"
            last = found.index.generation
            seen.update(batches)

    def batch(number: int) -> list[Document]:
        return [Document(str(each), f"batch {number} {each}", metadata={"batch": str(number)}) for each in range(size)]

    await retriever.add("notes", batch(1), deadline=soon())
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(read())
        for number in range(2, rounds):
            written = await retriever.add("notes", batch(number), deadline=soon())
            assert written.index.generation == number
            found = await retriever.retrieve(Query(f"? batch {number}", "notes", 50), deadline=soon())
            assert {passage.metadata["batch"] for passage in found.passages} == {str(number)}
        ended.set()
    assert len(seen) > 3
    assert reopened(tmp_path).snapshot.base.number > 0
    await retriever.close()
