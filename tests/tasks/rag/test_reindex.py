"""Reindexing belongs to no call: it goes on, is joined, keeps no writer waiting, and ends with the server."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from server.domain.errors import CollectionNotFound, ServerOverloaded, ServerStopping
from server.domain.rag import Document, IndexIdentity, Query, ReindexProgress
from server.inference.scheduler import Scheduler
from server.tasks.rag.engine import RagEngine
from server.vectorstore.collection import Collection
from server.vectorstore.segment import write_segment
from tests.tasks.rag.engines import embedder, engine, ids_of, reopened, scheduler, soon
from tests.tasks.rag.hashing import CAT, DOG, SUN, HashingEmbedder
from tests.waiting import until

__all__ = ["embedder", "engine", "scheduler"]  # fixtures


async def reindexed(engine: RagEngine, name: str = "notes") -> list[object]:
    return [event async for event in engine.reindexer.observe(name)]


@pytest.fixture
async def begun(engine: RagEngine, embedder: HashingEmbedder) -> asyncio.Task[list[object]]:
    """Reindexing of a collection that has CAT, which waits for the embedder."""
    await engine.ingester.add("notes", [CAT], deadline=soon())
    embedder.gate.clear()
    work = asyncio.create_task(reindexed(engine))
    await until(lambda: embedder.embedded[-1] == "notes")
    return work


async def test_it_goes_on_without_its_call(
    engine: RagEngine, embedder: HashingEmbedder, begun: asyncio.Task[list[object]], tmp_path: Path
) -> None:
    begun.cancel()
    await asyncio.wait({begun})
    embedder.gate.set()
    await until(lambda: engine.list_collections()[0].index.generation == 2)
    assert reopened(tmp_path).snapshot.segment.info.origin == "reindex"
    assert ids_of(tmp_path) == ["cat"]


async def test_another_call_joins_it(
    engine: RagEngine, embedder: HashingEmbedder, begun: asyncio.Task[list[object]]
) -> None:
    begun.cancel()
    await asyncio.wait({begun})
    joined = [asyncio.create_task(reindexed(engine)) for _ in range(2)]
    await asyncio.sleep(0)
    embedder.gate.set()
    for each in joined:
        assert await each == [ReindexProgress(0, 1), ReindexProgress(1, 1), IndexIdentity("notes", 2)]
    assert embedder.embedded.count(f"Cat\n{CAT.text}") == 2, "when it was added, and once more"
    assert (await reindexed(engine))[-1] == IndexIdentity("notes", 3)


async def test_a_reader_that_does_not_read_keeps_no_writer_waiting(engine: RagEngine) -> None:
    await engine.ingester.add("notes", [CAT, DOG], deadline=soon())
    stalled = engine.reindexer.observe("notes")
    await anext(stalled)  # and never again
    assert (await engine.ingester.add("notes", [SUN], deadline=soon())).added_count == 1
    await until(lambda: engine.list_collections()[0].index.generation == 3)
    assert [event async for event in stalled][-1] == IndexIdentity("notes", 3)


async def test_writes_go_on_and_are_not_lost(
    engine: RagEngine, scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that are added, replaced and deleted while others are embedded, here and by another process."""
    many = [Document(f"{number:03}", f"number {number}") for number in range(300)]
    await engine.ingester.add("notes", many[:128], deadline=soon())
    await engine.ingester.add("notes", many[128:], deadline=soon())
    newer = HashingEmbedder("2")
    newer.gate.clear()
    other = RagEngine(tmp_path, newer, scheduler)
    work = asyncio.create_task(reindexed(other))
    await until(lambda: newer.embedded)
    await engine.ingester.delete("notes", ["000", "001"], deadline=soon())
    await engine.ingester.add("notes", [Document("002", "changed"), SUN], deadline=soon())
    newer.gate.set()
    assert isinstance((await work)[-1], IndexIdentity)
    found = reopened(tmp_path)
    assert ids_of(tmp_path) == [*(f"{number:03}" for number in range(2, 300)), "sun"]
    assert found.snapshot.segment.info.model.version == "2"
    assert found.find("002") is not None
    for text, wanted in (("? changed", "002"), ("? star hot plasma", "sun"), ("? 299", "299")):
        [best] = (await other.retrieve(Query(text, "notes", 1), deadline=soon())).passages
        assert best.document_id == wanted


async def test_what_is_written_in_the_last_moment_is_embedded(
    engine: RagEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes after the last round, before the lock is taken."""
    await engine.ingester.add("notes", [CAT], deadline=soon())
    replace = Collection.replace

    def late(self: Collection, *arguments: object) -> object:
        made = reopened(tmp_path)
        passages, vectors = made.snapshot.passages.copy(), made.snapshot.vectors.copy()
        made.commit((), (DOG,), passages, vectors)  # with a vector that is not its own
        return replace(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Collection, "replace", late)
    await reindexed(engine)
    [best] = (await engine.retrieve(Query("? dog chases the red ball", "notes", 1), deadline=soon())).passages
    assert best.document_id == "dog"
    assert best.score > 0.9


async def test_the_end_of_the_server_ends_it(engine: RagEngine, begun: asyncio.Task[list[object]]) -> None:
    engine.reindexer.stop()
    with pytest.raises(ServerStopping):
        await begun
    with pytest.raises(ServerStopping):
        await reindexed(engine)
    await engine.close()


async def test_a_collection_that_is_removed_meanwhile(
    engine: RagEngine, embedder: HashingEmbedder, begun: asyncio.Task[list[object]], tmp_path: Path
) -> None:
    await engine.drop("notes", deadline=soon())
    embedder.gate.set()
    with pytest.raises(CollectionNotFound):
        await begun
    assert os.listdir(tmp_path) == []
    with pytest.raises(CollectionNotFound):
        await reindexed(engine)


async def test_an_overloaded_embedder_is_waited_for(
    engine: RagEngine, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    embed, refused = embedder.embed, 0

    async def refusing(*arguments: object, **options: float) -> object:
        nonlocal refused
        refused += 1
        if refused < 3:
            raise ServerOverloaded("the queue is full", retry_after=0.01)
        return await embed(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embedder, "embed", refusing)
    assert (await reindexed(engine))[-1] == IndexIdentity("notes", 2)


async def test_cancelled_compactions_share_one_thread(
    engine: RagEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    release, begun = threading.Event(), threading.Event()

    def slow(*arguments: object, **options: object) -> None:
        begun.set()
        release.wait(10)
        write_segment(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("server.vectorstore.collection.write_segment", slow)
    before = threading.active_count()
    for _ in range(20):
        call = asyncio.create_task(engine.compact("notes", deadline=soon()))
        await asyncio.sleep(0.005)
        call.cancel()
        await asyncio.wait({call})
    await until(begun.is_set)
    assert threading.active_count() <= before + 1
    await engine.ingester.add("notes", [DOG], deadline=soon())  # while it is compacted
    last = asyncio.create_task(engine.compact("notes", deadline=soon()))
    await asyncio.sleep(0)
    release.set()
    assert (await last).log_count == 0, "what was written before the call is in files"
    assert ids_of(tmp_path) == ["cat", "dog"]
