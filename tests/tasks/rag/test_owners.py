"""Owners of collections on disk, and names that change hands while a write waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

import pytest

from server.domain.access import Caller, Right
from server.domain.context import Context, set_current
from server.domain.errors import CollectionNotFound, CollectionNotGranted, InvalidRequest
from server.domain.rag import CollectionState
from server.inference.scheduler import Scheduler
from server.tasks.rag.engine import RagEngine
from server.vectorstore import layout, manager
from server.vectorstore.admin import drop_collection, publish_collection
from server.vectorstore.segment import Content
from tests.tasks.rag.engines import embedder, engine, scheduler, soon
from tests.tasks.rag.hashing import CAT, DIMENSIONS, DOG, HashingEmbedder
from tests.waiting import until

__all__ = ["embedder", "engine", "scheduler"]  # fixtures
T = TypeVar("T")


def as_tenant(tenant: str, right: Right, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
    """Run the call of a tenant whose method needs a right."""

    async def call() -> T:
        set_current(Context("", "r", soon(), caller=Caller(tenant, grants={}), right=right))
        return await work()

    return asyncio.get_running_loop().create_task(call(), context=copy_context())


@pytest.fixture
async def other(tmp_path: Path, embedder: HashingEmbedder, scheduler: Scheduler) -> AsyncIterator[RagEngine]:
    """Another server with the same folder, and an embedder of its own."""
    other = RagEngine(tmp_path, HashingEmbedder(), scheduler)
    yield other
    await other.close()


async def test_the_owner_is_recorded_and_outlives_all(engine: RagEngine, other: RagEngine, tmp_path: Path) -> None:
    await as_tenant("a", Right.ADD, lambda: engine.ingester.add("notes", [CAT], deadline=soon()))
    await engine.ingester.create("free", deadline=soon())  # without tenants
    await engine.rollback("notes", 0, deadline=soon())
    await engine.compact("notes", deadline=soon())
    await other.open()
    assert other.owners() == {"notes": "a", "free": ""}
    for path in (tmp_path / "notes").glob("0*/vectors.npy"):
        path.write_bytes(b"")
    again = RagEngine(tmp_path, HashingEmbedder(), Scheduler(1, 16))
    await again.open()
    assert [(each.state, each.owner) for each in again.list_collections()] == [
        (CollectionState.READY, ""),
        (CollectionState.FAILED, "a"),
    ]
    await again.close()
    publish_collection(tmp_path, "notes", Content(engine.embedder, DIMENSIONS))
    assert layout.read_owner(tmp_path / "notes") == "a", "made again from outside, it belongs to the same tenant"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1}', b'{"format": 1, "owner": 7}', b"\xff", b"[" * 99999])
async def test_an_unreadable_owner_is_nobody(engine: RagEngine, tmp_path: Path, content: bytes) -> None:
    await as_tenant("a", Right.ADD, lambda: engine.ingester.add("notes", [CAT], deadline=soon()))
    (tmp_path / "notes" / layout.PROPERTIES).write_bytes(content)
    again = RagEngine(tmp_path, HashingEmbedder(), Scheduler(1, 16))
    await again.open()
    (found,) = again.list_collections()
    assert (found.owner, found.state, found.document_count) == ("", CollectionState.DEGRADED, 1)
    assert "quintet tenants grant notes --owner TENANT" in found.state_message
    await again.close()


async def test_a_name_that_changes_hands_while_a_write_waits(
    engine: RagEngine, other: RagEngine, embedder: HashingEmbedder
) -> None:
    """The collection is deleted and made again by another tenant, on another server, while documents are embedded."""
    await as_tenant("a", Right.ADD, lambda: engine.ingester.add("notes", [CAT], deadline=soon()))
    embedder.gate.clear()
    embedder.embedded.clear()
    adding = as_tenant("a", Right.ADD, lambda: engine.ingester.add("notes", [DOG], deadline=soon()))
    deleting = as_tenant("a", Right.DELETE, lambda: engine.drop("notes", deadline=soon()))  # waits for the other write
    await until(lambda: bool(embedder.embedded))
    await other.open()
    await as_tenant("a", Right.DELETE, lambda: other.drop("notes", deadline=soon()))
    await as_tenant("b", Right.ADD, lambda: other.ingester.add("notes", [CAT], deadline=soon()))
    embedder.gate.set()
    for call in (adding, deleting):
        with pytest.raises(CollectionNotGranted):
            await call
    assert (await other.describe("notes", deadline=soon())).document_count == 1
    assert engine.owners() == {"notes": "b"}


async def test_the_owner_of_what_another_server_has_just_made_is_known(engine: RagEngine, other: RagEngine) -> None:
    await as_tenant("a", Right.CREATE, lambda: other.ingester.create("new", deadline=soon()))
    for name in ("new", "absent"):
        await engine.look_for(name)
        assert engine.owners() == {"new": "a"}


async def test_only_what_was_meant_is_removed(engine: RagEngine, tmp_path: Path) -> None:
    await as_tenant("a", Right.ADD, lambda: engine.ingester.add("notes", [CAT], deadline=soon()))
    with pytest.raises(CollectionNotFound):
        drop_collection(tmp_path, "notes", "b")
    drop_collection(tmp_path, "notes", "a")


async def test_a_new_collection_needs_room_on_the_server(engine: RagEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "MAX_COLLECTIONS", 2)
    calls = [engine.ingester.create(f"c{number}", deadline=soon()) for number in range(5)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, InvalidRequest)]
    assert len(refused) == 3
    assert refused[0].message == "collection: is new, and there are 2 already"
