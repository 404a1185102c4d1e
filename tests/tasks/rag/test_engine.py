"""Collections over time: made, written to by other processes, folded, rolled back, reindexed, removed."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from server.domain.errors import (
    CollectionBroken,
    CollectionExists,
    CollectionNotFound,
    EmbedderMismatch,
    GenerationNotFound,
    GenerationNotReached,
)
from server.domain.rag import CollectionState, Document, IndexIdentity, Query, ReindexProgress
from server.inference.scheduler import Scheduler
from server.tasks.rag.engine import RagEngine
from server.vectorstore import opened
from tests.tasks.rag.engines import described, embedder, engine, ids_of, reopened, scheduler, soon
from tests.tasks.rag.hashing import CAT, DOG, SUN, HashingEmbedder
from tests.waiting import until

__all__ = ["embedder", "engine", "scheduler"]  # fixtures


async def test_collections_outlive_the_engine(
    engine: RagEngine, embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path
) -> None:
    await engine.ingester.add("notes", [CAT, DOG], deadline=soon())
    await engine.ingester.add("others", [SUN], deadline=soon())
    again = RagEngine(tmp_path, embedder, scheduler)
    await again.open()
    for query, name in (("? dog ball", "notes"), ("? star", "others")):
        old, new = [await each.retrieve(Query(query, name, 5), deadline=soon()) for each in (engine, again)]
        assert old == new
    assert await described(again) == await described(engine)
    assert (await described(again)).passage_count == 2
    await again.close()


async def test_another_embedder(engine: RagEngine, scheduler: Scheduler, tmp_path: Path) -> None:
    await engine.ingester.add("notes", [CAT, DOG], deadline=soon())
    await engine.ingester.delete("notes", ["dog"], deadline=soon())
    other = RagEngine(tmp_path, HashingEmbedder("2"), scheduler)
    await other.open()
    for call in (
        other.retrieve(Query("? cat", "notes", 1), deadline=soon()),
        other.ingester.add("notes", [DOG], deadline=soon()),
        other.ingester.delete("notes", ["cat"], deadline=soon()),
    ):
        with pytest.raises(EmbedderMismatch, match=r"hashing 1, the server runs hashing 2.*quintet reindex notes"):
            await call
    found = await described(other)
    assert (found.model.version, found.state) == ("1", CollectionState.NEEDS_REINDEX)
    assert (await other.ingester.add("others", [DOG], deadline=soon())).added_count == 1

    events = [event async for event in other.reindexer.observe("notes")]
    assert events == [ReindexProgress(0, 1), ReindexProgress(1, 1), IndexIdentity("notes", 3)]
    [best] = (await other.retrieve(Query("? cat sleeps", "notes", 5), deadline=soon())).passages
    assert (best.document_id, best.metadata) == ("cat", CAT.metadata)
    found = await described(other)
    assert (found.model.version, found.state, found.document_count) == ("2", CollectionState.READY, 1)
    _, kept = await other.list_generations("notes")
    assert [(each.generation, each.origin) for each in kept] == [(3, "reindex"), (0, "create")]
    await other.close()


async def test_an_empty_collection_can_be_reindexed(engine: RagEngine) -> None:
    await engine.ingester.create("notes", deadline=soon())
    *_, last = [event async for event in engine.reindexer.observe("notes")]
    assert last == IndexIdentity("notes", 1)


async def test_broken_collection_fails_alone(
    engine: RagEngine, embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path
) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    await engine.ingester.add("others", [SUN], deadline=soon())
    (tmp_path / "notes" / "00000000" / "vectors.npy").write_bytes(b"")
    again = RagEngine(tmp_path, embedder, scheduler)
    await again.open()
    with pytest.raises(CollectionBroken, match=r'"notes" has no generation that is whole.*vectors.npy.*Delete it'):
        await again.retrieve(Query("? cat", "notes", 1), deadline=soon())
    assert [each.state for each in again.list_collections()] == [CollectionState.FAILED, CollectionState.READY]
    assert (await again.retrieve(Query("? sun", "others", 1), deadline=soon())).passages
    await again.drop("notes", deadline=soon())
    assert (await again.ingester.add("notes", [CAT], deadline=soon())).added_count == 1
    await again.close()


async def test_damage_is_reported(
    engine: RagEngine, embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path
) -> None:
    for document in (CAT, DOG, SUN):
        await engine.ingester.add("notes", [document], deadline=soon())
    assert (await described(engine)).state is CollectionState.READY
    path = tmp_path / "notes" / "00000000.log"
    path.write_bytes(path.read_bytes().replace(b"chases", b"chased"))
    again = RagEngine(tmp_path, embedder, scheduler)
    await again.open()
    found = await described(again)
    assert (found.state, found.fault_count, found.document_count) == (CollectionState.DEGRADED, 2, 2)
    assert "writes 2 to 2 are lost" in found.state_message
    assert again.list_collections()[0].state_message == found.state_message
    await again.close()


async def test_collections_come_and_go(engine: RagEngine, tmp_path: Path) -> None:
    assert await engine.ingester.create("notes", deadline=soon()) == IndexIdentity("notes", 0)
    with pytest.raises(CollectionExists):
        await engine.ingester.create("notes", deadline=soon())
    assert (await engine.retrieve(Query("? cat", "notes", 1), deadline=soon())).passages == ()
    await engine.ingester.add("notes", [CAT], deadline=soon())
    assert [(each.index.generation, each.document_count) for each in engine.list_collections()] == [(1, 1)]
    assert await engine.drop("notes", deadline=soon()) == IndexIdentity("notes", 1)
    assert engine.list_collections() == []
    assert os.listdir(tmp_path) == []
    with pytest.raises(CollectionNotFound):
        await engine.drop("notes", deadline=soon())


async def test_rollback_can_be_rolled_back(engine: RagEngine, tmp_path: Path) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    await engine.compact("notes", deadline=soon())
    await engine.ingester.add("notes", [DOG], deadline=soon())
    with pytest.raises(GenerationNotFound, match="keeps no generation 2; it keeps: 1, 0"):
        await engine.rollback("notes", 2, deadline=soon())
    assert await engine.rollback("notes", 1, deadline=soon()) == IndexIdentity("notes", 3)
    assert ids_of(tmp_path) == ["cat"]
    served, kept = await engine.list_generations("notes")
    assert served == IndexIdentity("notes", 3)
    assert [(each.generation, each.origin) for each in kept] == [(3, "rollback to 1"), (2, "fold"), (1, "fold")]
    assert (tmp_path / "notes" / "00000003" / "vectors.npy").stat().st_nlink == 2
    await engine.ingester.add("notes", [SUN], deadline=soon())
    assert await engine.rollback("notes", 2, deadline=soon()) == IndexIdentity("notes", 5)
    assert ids_of(tmp_path) == ["cat", "dog"]


async def test_two_processes(
    engine: RagEngine, embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path
) -> None:
    """A second engine over the same folder stands for another process: it shares nothing with the first."""
    await engine.ingester.add("notes", [CAT], deadline=soon())
    other = RagEngine(tmp_path, embedder, scheduler)
    await other.open()
    written = await engine.ingester.add("notes", [DOG], deadline=soon())
    query = Query("? dog", "notes", 5, min_generation=written.index.generation)
    assert len((await other.retrieve(query, deadline=soon())).passages) == 2
    await engine.compact("notes", deadline=soon())
    assert (await other.ingester.add("notes", [SUN], deadline=soon())).index.generation == 3
    assert (await engine.ingester.add("notes", [replace(SUN, title="Sun")], deadline=soon())).updated_count == 1
    await engine.rollback("notes", 2, deadline=soon())
    await until(lambda: other.list_collections()[0].index.generation == 5, seconds=3)
    assert other.list_collections()[0].document_count == 2
    await engine.drop("notes", deadline=soon())
    await until(lambda: other.list_collections() == [], seconds=3)
    await other.close()


async def test_another_process_makes_a_collection_anew(
    engine: RagEngine, embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path
) -> None:
    """Before the watcher notices it."""
    for document in (CAT, SUN):
        await engine.ingester.add("notes", [document], deadline=soon())
    other = RagEngine(tmp_path, embedder, scheduler)
    assert (await described(other)).index.generation == 2
    await engine.drop("notes", deadline=soon())
    written = await engine.ingester.add("notes", [DOG], deadline=soon())
    query = Query("? dog", "notes", 5, min_generation=written.index.generation)
    found = await other.retrieve(query, deadline=soon())
    assert [passage.document_id for passage in found.passages] == ["dog"]
    await engine.drop("notes", deadline=soon())
    assert await other.ingester.create("notes", deadline=soon()) == IndexIdentity("notes", 0)
    with pytest.raises(CollectionExists):
        await engine.ingester.create("notes", deadline=soon())
    await engine.drop("notes", deadline=soon())
    with pytest.raises(CollectionNotFound):
        await other.drop("notes", deadline=soon())


async def test_a_generation_that_never_comes(engine: RagEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_REACH_SECONDS", 0.1)
    await engine.ingester.add("notes", [CAT], deadline=soon())
    with pytest.raises(GenerationNotReached, match="at generation 1, not yet at 2"):
        await engine.retrieve(Query("? cat", "notes", 1, min_generation=2), deadline=soon())
    with pytest.raises(GenerationNotReached):
        await engine.describe("notes", 2, deadline=soon())


async def test_folding_when_due(
    embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.vectorstore.manager.FOLD_PASSAGES", 8)
    engine = RagEngine(tmp_path, embedder, scheduler)
    await engine.open()
    for number in range(20):
        await engine.ingester.add("notes", [Document(str(number), f"text {number}")], deadline=soon())
    await until(lambda: reopened(tmp_path).snapshot.log_count < 8)
    assert len((await engine.retrieve(Query("? text", "notes", 50), deadline=soon())).passages) == 20
    await engine.close()


async def test_freshness_and_whole_batches(
    embedder: HashingEmbedder, scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers never fail and never see a part of a batch, while batches replace each other and folds go on."""
    monkeypatch.setattr("server.vectorstore.manager.FOLD_PASSAGES", 40)
    engine = RagEngine(tmp_path, embedder, Scheduler(2, 64))
    await engine.open()
    size, rounds = 5, 30
    ended = asyncio.Event()
    seen: set[str] = set()

    async def read() -> None:
        last = 0
        while not ended.is_set():
            found = await engine.retrieve(Query("? batch", "notes", 50), deadline=soon())
            batches = {passage.metadata["batch"] for passage in found.passages}
            assert len(found.passages) == size, found
            assert len(batches) == 1, found
            assert batches == {str(found.index.generation)}
            assert found.index.generation >= last, "numbers never go back"
            last = found.index.generation
            seen.update(batches)

    def batch(number: int) -> list[Document]:
        return [Document(str(each), f"batch {number} {each}", metadata={"batch": str(number)}) for each in range(size)]

    await engine.ingester.add("notes", batch(1), deadline=soon())
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(read())
        for number in range(2, rounds):
            written = await engine.ingester.add("notes", batch(number), deadline=soon())
            assert written.index.generation == number
            found = await engine.retrieve(Query(f"? batch {number}", "notes", 50), deadline=soon())
            assert {passage.metadata["batch"] for passage in found.passages} == {str(number)}
        ended.set()
    assert len(seen) > 3
    assert reopened(tmp_path).snapshot.segment.info.generation > 0
    await engine.close()
