"""Adding and searching: what is added is found, writes are complete or absent, and searches never wait for a writer."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from server.domain.errors import CollectionNotFound, DeadlineExceeded, InvalidRequest, ServerOverloaded
from server.domain.rag import Document, IndexIdentity, NumberRange, Query, TextRange, ValueIn, WriteResult
from server.tasks.rag import ingest
from server.tasks.rag.engine import RagEngine
from server.vectorstore import manager
from server.vectorstore.layout import collection_names
from tests.tasks.rag.engines import described, embedder, engine, ids_of, reopened, scheduler, soon
from tests.tasks.rag.hashing import CAT, DOG, SUN, HashingEmbedder

__all__ = ["embedder", "engine", "scheduler"]  # fixtures


async def test_what_was_added_is_found(engine: RagEngine, embedder: HashingEmbedder) -> None:
    await engine.ingester.add("notes", [CAT, DOG, SUN], deadline=soon())
    found = await engine.retrieve(Query("? cat sleeps on the mat", "notes", 2), deadline=soon())
    assert found.index == IndexIdentity("notes", 1)
    assert found.model == embedder.description.identity
    assert len(found.passages) == 2
    best = found.passages[0]
    assert (best.document_id, best.title, best.uri, best.metadata) == ("cat", "Cat", "file:cat", {"kind": "animal"})
    assert best.text == CAT.text == CAT.text[best.start : best.end]
    assert 1.0 >= best.score > found.passages[1].score
    assert len((await engine.retrieve(Query("? cat", "notes", 100), deadline=soon())).passages) == 3


async def test_long_documents_are_cut_and_embedded_under_their_title(
    engine: RagEngine, embedder: HashingEmbedder
) -> None:
    paragraphs = [f"{word} " * 130 for word in ("apple", "boat", "cloud", "drum")]
    text = "\n\n".join(paragraphs)
    await engine.ingester.add("notes", [Document("long", text, "Words")], deadline=soon())
    assert embedder.embedded == [f"Words\n{paragraph.strip()}" for paragraph in paragraphs]
    [best] = (await engine.retrieve(Query("? cloud", "notes", 1), deadline=soon())).passages
    assert best.text == paragraphs[2].strip() == text[best.start : best.end]


async def test_only_what_changed_is_written(engine: RagEngine, embedder: HashingEmbedder, tmp_path: Path) -> None:
    first = await engine.ingester.add("notes", [CAT, DOG], deadline=soon())
    assert first == WriteResult(IndexIdentity("notes", 1), added_count=2)
    embedder.embedded.clear()
    assert await engine.ingester.add("notes", [CAT, DOG], deadline=soon()) == WriteResult(
        first.index, unchanged_count=2
    )
    assert embedder.embedded == []
    new_dog = Document("dog", "A dog sleeps, too.")
    assert await engine.ingester.add("notes", [CAT, new_dog, SUN], deadline=soon()) == WriteResult(
        IndexIdentity("notes", 2), added_count=1, updated_count=1, unchanged_count=1
    )
    assert embedder.embedded == [new_dog.text, SUN.text]
    [best] = (await engine.retrieve(Query("? dog sleeps", "notes", 1), deadline=soon())).passages
    assert best.text == new_dog.text
    deleted = await engine.ingester.delete("notes", ["dog", "nobody"], deadline=soon())
    assert deleted == WriteResult(IndexIdentity("notes", 3), deleted_count=1)
    assert await engine.ingester.delete("notes", ["dog"], deadline=soon()) == WriteResult(IndexIdentity("notes", 3))
    assert ids_of(tmp_path) == ["cat", "sun"]


async def test_everything_may_be_deleted(engine: RagEngine) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    await engine.ingester.delete("notes", ["cat"], deadline=soon())
    assert (await engine.retrieve(Query("? cat", "notes", 3), deadline=soon())).passages == ()
    assert (await described(engine)).document_count == 0
    await engine.ingester.add("notes", [DOG], deadline=soon())
    assert len((await engine.retrieve(Query("? dog", "notes", 3), deadline=soon())).passages) == 1


async def test_unknown_collection(engine: RagEngine) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    for call in (
        engine.retrieve(Query("? cat", "nots", 1), deadline=soon()),
        engine.ingester.delete("nots", ["cat"], deadline=soon()),
    ):
        with pytest.raises(CollectionNotFound, match='"nots"; known: notes'):
            await call
    with pytest.raises(CollectionNotFound):
        await engine.describe("nots", deadline=soon())


async def test_limits(engine: RagEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=re.escape("documents[2].id: is also that of documents[0]")):
        await engine.ingester.add("notes", [CAT, DOG, CAT], deadline=soon())
    monkeypatch.setattr(ingest, "MAX_PASSAGES", 2)
    await engine.ingester.add("notes", [CAT, DOG], deadline=soon())
    with pytest.raises(InvalidRequest, match=r"documents: .* 3 passages; 2 is the limit"):
        await engine.ingester.add("notes", [SUN], deadline=soon())
    monkeypatch.setattr(manager, "MAX_COLLECTIONS", 1)
    with pytest.raises(InvalidRequest, match="collection: is new"):
        await engine.ingester.add("others", [SUN], deadline=soon())
    with pytest.raises(DeadlineExceeded):
        await engine.ingester.add("notes", [SUN], deadline=soon(-1.0))
    assert ids_of(tmp_path) == ["cat", "dog"]
    assert collection_names(tmp_path) == ["notes"]


async def test_searching_never_waits_for_writing(engine: RagEngine, embedder: HashingEmbedder) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    embedder.gate.clear()
    writing = asyncio.create_task(engine.ingester.add("notes", [DOG], deadline=soon()))
    await asyncio.sleep(0.05)
    assert (await engine.retrieve(Query("? dog", "notes", 5), deadline=soon())).index.generation == 1
    embedder.gate.set()
    await writing
    assert (await engine.retrieve(Query("? dog", "notes", 5), deadline=soon())).index.generation == 2


async def test_writers_take_turns(engine: RagEngine, embedder: HashingEmbedder, tmp_path: Path) -> None:
    embedder.gate.clear()
    calls = [engine.ingester.add("notes", [Document(str(i), f"text {i}")], deadline=soon()) for i in range(11)]
    writing = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0.1)
    embedder.gate.set()
    results = await asyncio.gather(*writing, return_exceptions=True)
    written = [result.index.generation for result in results if isinstance(result, WriteResult)]
    assert written == list(range(1, 10))
    assert [type(result) for result in results if not isinstance(result, WriteResult)] == [ServerOverloaded] * 2
    assert ids_of(tmp_path) == [str(i) for i in range(9)]


async def test_cancelled_write_is_complete_or_absent(
    engine: RagEngine, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    for delay in (0.0, 0.001, 0.003, 0.01, 0.03):
        call = asyncio.create_task(engine.ingester.add("notes", [Document(f"at {delay}", "text")], deadline=soon()))
        await asyncio.sleep(delay)
        call.cancel()
        await asyncio.wait({call})
        assert (await described(engine)).index.generation == reopened(tmp_path).snapshot.generation
    assert (await engine.ingester.add("notes", [DOG], deadline=soon())).added_count == 1


async def test_only_the_metadata_changed(engine: RagEngine, embedder: HashingEmbedder) -> None:
    await engine.ingester.add("notes", [CAT], deadline=soon())
    await engine.compact("notes", deadline=soon())
    embedder.embedded.clear()
    for kind in ("pet", "friend"):  # from the generation, then from the log
        changed = replace(CAT, metadata={"kind": kind})
        assert (await engine.ingester.add("notes", [changed], deadline=soon())).updated_count == 1
        [best] = (await engine.retrieve(Query("? cat sleeps", "notes", 5), deadline=soon())).passages
        assert (best.text, best.metadata) == (CAT.text, {"kind": kind})
    assert embedder.embedded == ["? cat sleeps"] * 2


async def test_filters(engine: RagEngine) -> None:
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
        return {passage.document_id for passage in (await engine.retrieve(query, deadline=soon())).passages}

    async def check() -> None:
        assert await found(ValueIn("kind", ("mammal",))) == {"cat", "bat"}
        assert await found(ValueIn("kind", ("bird", "fish", "no"))) == {"owl", "eel"}
        assert await found(NumberRange("legs", at_least=2, less_than=4)) == {"bat", "owl"}
        assert await found(NumberRange("legs", at_most=4)) == {"cat", "bat", "owl"}
        assert await found(TextRange("born", at_least="2021", less_than="2022")) == {"bat", "owl"}
        assert await found(TextRange("born", at_most="2021-01-01")) == {"cat", "bat"}
        assert await found(ValueIn("kind", ("mammal",)), NumberRange("legs", at_most=3)) == {"bat"}
        assert await found(ValueIn("color", ("red",))) == set()

    await engine.ingester.add("pets", pets[:2], deadline=soon())
    await engine.compact("pets", deadline=soon())
    await engine.ingester.add("pets", pets[2:], deadline=soon())
    await check()  # two in the generation, two in the log
    await engine.compact("pets", deadline=soon())
    await check()
    await engine.ingester.add("pets", [replace(pets[0], metadata={"kind": "bird"})], deadline=soon())
    assert await found(ValueIn("kind", ("mammal",))) == {"bat"}
    assert await found(ValueIn("kind", ("bird",))) == {"owl", "cat"}


async def test_documents_in_pages(engine: RagEngine) -> None:
    names = [f"{number:02}" for number in range(10)]
    await engine.ingester.add("notes", [Document(name, "text", f"T{name}") for name in names[:6]], deadline=soon())
    await engine.compact("notes", deadline=soon())
    await engine.ingester.add("notes", [Document(name, "text", f"T{name}") for name in names[4:]], deadline=soon())
    await engine.ingester.delete("notes", ["03"], deadline=soon())
    seen: list[str] = []
    while True:
        page = await engine.list_documents("notes", seen[-1] if seen else "", 4)
        assert all((each.title, each.text_length) == (f"T{each.id}", 4) for each in page.documents)
        seen += (each.id for each in page.documents)
        if page.complete:
            break
        assert len(page.documents) == 4
    assert seen == [name for name in names if name != "03"]
