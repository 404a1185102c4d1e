"""Whatever a file of one collection becomes, the others serve, errors are documented, and what is lost is said."""

import asyncio
import errno
import hashlib
import json
import os
import shutil
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.errors import (
    CollectionNotFound,
    CollectionUnavailable,
    CollectionUnreadable,
    EmbedderMismatch,
    GenerationNotFound,
    QuintetError,
)
from server.domain.rag import CollectionState, Document, Query
from server.inference.scheduler import Scheduler
from server.tasks.rag.engine import RagEngine
from tests.tasks.rag.hashing import CAT, DOG, SUN, HashingEmbedder
from tests.waiting import until

FOX = Document("fox", "The quick fox jumps.", metadata={"kind": "animal", "legs": "4"})
EVERY = ("cat", "dog", "fox", "sun")
ALLOWED = (CollectionUnavailable, CollectionUnreadable, CollectionNotFound, GenerationNotFound, EmbedderMismatch)


def soon() -> float:
    return time.monotonic() + 20


async def filled(index: Path) -> None:
    """Two collections, each with two segments, a log that belongs to a segment, and one with three writes after it."""
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    for name in ("hurt", "healthy"):
        await engine.ingester.add(name, [CAT], deadline=soon())
        await engine.compact(name, deadline=soon())
        for document in (DOG, FOX, SUN):
            await engine.ingester.add(name, [document], deadline=soon())
    await engine.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("template")
    asyncio.run(filled(index))
    return index


@pytest.fixture
def index(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "index"))


async def attempt(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except ALLOWED as error:
        return error


async def check(index: Path) -> tuple[CollectionState | None, set[str]]:
    """Open the folder, use everything; returns the state of the hurt collection and the documents that it serves."""
    scheduler = Scheduler(1, 16)
    engine = RagEngine(index, HashingEmbedder(), scheduler)
    async with asyncio.timeout(20):
        await engine.open()
        try:
            query = Query("? cat", "healthy", 9)
            assert {p.document_id for p in (await engine.retrieve(query, deadline=soon())).passages} == set(EVERY)
            added = await engine.ingester.add("healthy", [Document("new", "new")], deadline=soon())
            assert added.added_count == 1
            states = {each.index.collection: each for each in engine.list_collections()}
            assert states["healthy"].state is CollectionState.READY
            found = await attempt(engine.retrieve(Query("? cat", "hurt", 9), deadline=soon()))
            served = set() if isinstance(found, QuintetError) else {p.document_id for p in found.passages}
            hurt = {each.index.collection: each for each in engine.list_collections()}.get("hurt")
            if not set(EVERY) <= served:
                assert hurt is None or hurt.state is not CollectionState.READY, "silently lost"
            await attempt(engine.list_documents("hurt", "", 9))
            await attempt(engine.list_generations("hurt"))
            await attempt(engine.describe("hurt", deadline=soon()))
            await attempt(engine.ingester.delete("hurt", ["dog"], deadline=soon()))
            await attempt(engine.ingester.add("hurt", [Document("new", "new")], deadline=soon()))
            await attempt(engine.compact("hurt", deadline=soon()))
            await attempt(engine.rollback("hurt", 1, deadline=soon()))
            await attempt(last_of(engine))
            await attempt(engine.drop("hurt", deadline=soon()))
            return (hurt.state if hurt else None), served
        finally:
            await engine.close()
            scheduler.close()


async def last_of(engine: RagEngine) -> object:
    return [event async for event in engine.reindexer.observe("hurt")][-1]


def files(index: Path) -> list[Path]:
    return sorted(path for path in (index / "hurt").rglob("*") if path.is_file())


ODD_NUMBERS = st.sampled_from([0, -1, 1.5, 2**31, 2**53 + 1, 2**64, 10**30, True])
ODD: st.SearchStrategy[Any] = st.one_of(
    ODD_NUMBERS,
    st.sampled_from(["", "\ud800", "x" * 300, None, [], {}, [[]], {"a": 1}, float("nan"), [1, 2], "9" * 30]),
)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_bytes_of_any_file(template: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    index = Path(shutil.copytree(template, tmp_path_factory.mktemp("bytes") / "index"))
    path = data.draw(st.sampled_from(files(index)), label="file")
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, max(0, len(raw) - 1)), label="at")
    match data.draw(st.sampled_from(["flip", "truncate", "insert", "replace", "remove"]), label="damage"):
        case "flip" if raw:
            raw[at] ^= data.draw(st.integers(1, 255))
        case "truncate":
            del raw[at:]
        case "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=40))
        case "replace":
            raw = bytearray(
                data.draw(st.sampled_from([b"", b"\0" * 300, b"[]", b"null", b"9" * 5000, b"\xff\xfe", b"-1"]))
            )
        case _:
            path.unlink()
    if path.exists():
        path.write_bytes(raw)
    is_log_end = (
        path.suffix == ".log"
    )  # a log that ends at a record's end, or does not exist, cannot be told from a new one
    try:
        asyncio.run(check(index))
    except AssertionError as error:
        if "silently lost" not in str(error) or not is_log_end:
            raise


ALIENS: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", ALIENS)
async def test_something_else_in_place_of_a_file(template: Path, tmp_path: Path, kind: str) -> None:
    """For each file, and for the collection's folder, and beside the files under names that could be theirs."""
    names = [path.relative_to(template) for path in files(template)]
    wanted = ("current", "00000001.log", "00000001/manifest.json")
    places = [name for name in names if str(name.relative_to("hurt")) in wanted]
    for number, place in enumerate([*places, Path("hurt")]):
        index = Path(shutil.copytree(template, tmp_path / f"replaced{number}"))
        target = index / place
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        ALIENS[kind](target)
        await check(index)
    for number, name in enumerate(("00000009", "00000009.log", "99999999999999999999.log")):
        index = Path(shutil.copytree(template, tmp_path / f"beside{number}"))
        ALIENS[kind](index / "hurt" / name)
        _, served = await check(index)
        assert served == set(EVERY)
    index = Path(shutil.copytree(template, tmp_path / "alone"))
    for name in ("alone", ".hidden", "Not-A-Name"):
        ALIENS[kind](index / name)
    await check(index)


def manifest_fields(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_bytes())
    return fields


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_values_of_a_manifest(template: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    index = Path(shutil.copytree(template, tmp_path_factory.mktemp("values") / "index"))
    path = index / "hurt" / "00000001" / "manifest.json"
    fields = manifest_fields(path)
    place: Any = fields
    key = data.draw(st.sampled_from(sorted(fields)), label="field")
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans(), label="deeper"):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)), label="field in it")
    if data.draw(st.booleans(), label="remove"):
        del place[key]
    else:
        place[key] = data.draw(ODD, label="value")
    path.write_text(json.dumps(fields))
    _, served = asyncio.run(check(index))
    is_newer = key == "format" and isinstance(fields.get(key), int) and 2 < fields[key] < 2**63
    embedder: Any = fields.get("embedder")
    is_other_embedder = place is embedder and isinstance(embedder.get(key), str) and embedder[key] != "\ud800"
    assert served == (set() if is_newer or is_other_embedder else set(EVERY)), "the generation before has everything"


def record(generation: int, head: Any, passages: bytes = b"", vectors: bytes = b"", magic: bytes = b"QLg1") -> bytes:
    """A record whose checksums are right."""
    text = json.dumps(head).encode() if not isinstance(head, bytes) else head
    body = struct.pack("<I", len(text)) + text + passages + vectors
    header = struct.pack("<4sIQI", magic, len(body), generation, zlib.crc32(body))
    return header + struct.pack("<I", zlib.crc32(header)) + body


HEAD = {"time": "2026-11-30T10:00:00+00:00", "removed": [], "documents": [], "shape": [0, 1024]}
ONE = {"id": "a", "text": "abc", "title": "", "uri": "", "metadata": {}}
PASSAGE, VECTOR = struct.pack("<3i", 0, 0, 3), struct.pack("<1024f", 1.0, *[0.0] * 1023)
SHAPES: dict[str, bytes] = {
    "empty object": record(5, {}),
    "list": record(5, []),
    "null": record(5, None),
    "not JSON": record(5, b"\xff\xfe"),
    "deep": record(5, b"[" * 100_000),
    "no time": record(5, HEAD | {"time": 5}),
    "document without a text": record(5, HEAD | {"documents": [{"id": "a"}]}),
    "document of numbers": record(5, HEAD | {"documents": [ONE | {"title": 5}]}),
    "metadata of numbers": record(5, HEAD | {"documents": [ONE | {"metadata": {"a": 1}}]}),
    "surrogate": record(5, HEAD | {"documents": [ONE | {"title": "\ud800"}]}),
    "removed numbers": record(5, HEAD | {"removed": [1]}),
    "removed nothing": record(5, HEAD | {"removed": None}),
    "passages of no document": record(5, HEAD | {"shape": [1, 1024]}, PASSAGE, VECTOR),
    "other dimensions": record(5, HEAD | {"documents": [ONE], "shape": [1, 3]}, PASSAGE, VECTOR[:12]),
    "negative rows": record(5, HEAD | {"shape": [-1, 1024]}),
    "many rows": record(5, HEAD | {"shape": [2**40, 1024]}),
    "shape of texts": record(5, HEAD | {"shape": ["1", "2"]}),
    "not finite": record(
        5, HEAD | {"documents": [ONE], "shape": [1, 1024]}, PASSAGE, struct.pack("<1024f", *[float("nan")] * 1024)
    ),
    "no body": record(5, b""),
    "huge generation": record(2**64 - 1, HEAD),
    "large generation": record(2**32, {}),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_record_of_another_shape(index: Path, shape: str) -> None:
    path = index / "hurt" / "00000001.log"
    with path.open("ab") as file:
        file.write(SHAPES[shape])
    before = path.read_bytes()
    state, served = await check(Path(shutil.copytree(index, index.parent / "first")))
    assert (state, served) == (CollectionState.DEGRADED, set(EVERY))
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    found = await engine.describe("hurt", deadline=soon())
    assert found.document_count == len(EVERY)
    added = await engine.ingester.add("hurt", [Document("new", "new")], deadline=soon())
    assert added.index.generation > found.index.generation
    await engine.close()
    kept = b"".join(each.read_bytes() for each in sorted((index / "hurt").glob("*.damaged")))
    assert SHAPES[shape] in before[-len(SHAPES[shape]) :]
    assert SHAPES[shape] in kept, "the bytes are kept"


async def test_a_record_of_another_shape_while_running(index: Path) -> None:
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    with (index / "hurt" / "00000001.log").open("ab") as file:
        file.write(SHAPES["empty object"])
    await until(lambda: engine.faults()["hurt"])
    other = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await other.ingester.add("healthy", [Document("late", "late")], deadline=soon())
    counts = {each.index.collection: each.document_count for each in engine.list_collections()}
    await until(lambda: {each.index.collection: each.document_count for each in engine.list_collections()} != counts)
    await engine.close()


async def test_the_last_record_is_kept_when_it_is_damaged(index: Path) -> None:
    path = index / "hurt" / "00000001.log"
    raw = path.read_bytes()
    at = raw.rindex(b"star made of hot")
    path.write_bytes(raw[:at] + b"S" + raw[at + 1 :])
    for _ in range(2):  # a restart does not make it forget
        engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
        await engine.open()
        info = await engine.describe("hurt", deadline=soon())
        assert (info.state, info.document_count) == (CollectionState.DEGRADED, 3)
        await engine.close()
    [kept] = (index / "hurt").glob("*.damaged")
    assert b"Star made of hot" in kept.read_bytes()
    assert kept.name in info.state_message
    kept.unlink()
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    assert (await engine.describe("hurt", deadline=soon())).state is CollectionState.READY
    await engine.close()


async def test_documents_of_another_shape_with_a_right_digest(index: Path) -> None:
    folder = index / "hurt" / "00000001"
    for wanted, other in ((b'"text":', b'"tixt":'), (b'"title":"Cat"', b'"title": 123'.ljust(13))):
        raw = (folder / "documents.utf8").read_bytes()
        (folder / "documents.utf8").write_bytes(raw.replace(wanted, other))
        fields = manifest_fields(folder / "manifest.json")
        changed = (folder / "documents.utf8").read_bytes()
        fields["files"]["documents.utf8"]["sha256"] = hashlib.sha256(changed).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(fields))
        await check(Path(shutil.copytree(index, index.parent / other.decode().strip('":'))))


@pytest.mark.parametrize("place", ["manifest", "record", "owner"])
async def test_a_newer_format_is_refused(index: Path, place: str) -> None:
    if place == "manifest":
        path = index / "hurt" / "00000001" / "manifest.json"
        path.write_text(json.dumps(manifest_fields(path) | {"format": 3}))
    elif place == "record":
        with (index / "hurt" / "00000001.log").open("ab") as file:
            file.write(record(5, HEAD, magic=b"QLg2"))
    else:
        (index / "hurt" / "collection.json").write_text(json.dumps({"format": 2, "owner": "acme"}))
    before = {path: path.read_bytes() for path in files(index)}
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    for call in (
        engine.retrieve(Query("? cat", "hurt", 1), deadline=soon()),
        engine.ingester.add("hurt", [CAT], deadline=soon()),
        engine.compact("hurt", deadline=soon()),
    ):
        with pytest.raises(CollectionUnavailable, match=r"newer version of Quintet wrote.*Update this server"):
            await call
    assert {path: path.read_bytes() for path in files(index)} == before
    assert await attempt(engine.retrieve(Query("? cat", "healthy", 1), deadline=soon()))
    await engine.close()


async def test_unknown_fields_are_kept(index: Path) -> None:
    """Those of documents, through folds; those of a manifest and of a record mean nothing here."""
    path = index / "hurt" / "00000001" / "manifest.json"
    fields = manifest_fields(path)
    fields["embedder"]["colour"] = fields["files"]["vectors.npy"]["colour"] = fields["colour"] = "red"
    path.write_text(json.dumps(fields))
    with (index / "hurt" / "00000001.log").open("ab") as file:
        head = HEAD | {"documents": [ONE | {"colour": "red"}], "shape": [1, 1024], "colour": "red"}
        file.write(record(5, head, PASSAGE, VECTOR))
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.compact("hurt", deadline=soon())
    await last_of(engine)
    await engine.close()
    assert b'"colour":"red"' in (index / "hurt" / "00000006" / "documents.utf8").read_bytes()
    assert await check(index) == (CollectionState.READY, {*EVERY, "a"})


async def test_a_log_that_shrinks_while_it_is_served_loses_nothing(index: Path) -> None:
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    os.truncate(index / "hurt" / "00000001.log", 100)
    await engine.ingester.add("hurt", [Document("new", "new")], deadline=soon())
    await engine.close()
    again = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await again.open()
    assert (await again.describe("hurt", deadline=soon())).document_count == len(EVERY) + 1
    await again.close()


async def test_a_collection_heals_when_its_files_do(index: Path) -> None:
    backup = Path(shutil.copytree(index / "hurt", index.parent / "backup"))
    for generation in ("00000000", "00000001"):
        (index / "hurt" / generation / "vectors.npy").write_bytes(b"")
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    assert isinstance(await attempt(engine.describe("hurt", deadline=soon())), CollectionUnavailable)
    for generation in ("00000000", "00000001"):
        shutil.copy(backup / generation / "vectors.npy", index / "hurt" / generation / "vectors.npy")
    info = await engine.describe("hurt", deadline=soon())
    assert (info.state, info.document_count) == (CollectionState.READY, len(EVERY))
    await engine.close()


async def test_what_the_system_refuses_is_tried_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, as an example of what says nothing about the files."""
    import resource

    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    await engine.close()
    again = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest_free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        await again.open()
        found = await attempt(again.describe("hurt", deadline=soon()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(found, CollectionUnreadable)
    assert os.strerror(errno.EMFILE).lower() in found.message
    await until(lambda: again.faults() == {"hurt": [], "healthy": []})  # the watcher lives, too
    assert (await again.describe("hurt", deadline=soon())).state is CollectionState.READY
    await again.close()


async def test_segments_that_are_cut_short_while_they_are_served(index: Path) -> None:
    """As by a backup that is copied over them. Mapped files would end the process."""
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    for path in files(index):
        if path.parent.name == "00000001":
            os.truncate(path, 0)
    found = await engine.retrieve(Query("? cat", "hurt", 9), deadline=soon())
    assert {passage.document_id for passage in found.passages} == set(EVERY)
    await engine.compact("hurt", deadline=soon())  # writes all of it again
    await engine.close()
    assert await check(index) == (CollectionState.READY, set(EVERY))
