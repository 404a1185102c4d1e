"""What tests of the engine share: fixtures, to be imported, and looks at the disk."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.domain.rag import CollectionInfo
from server.inference.scheduler import Scheduler
from server.tasks.rag.engine import RagEngine
from server.vectorstore.collection import Collection
from tests.tasks.rag.hashing import HashingEmbedder


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(1, 16)


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
async def engine(tmp_path: Path, embedder: HashingEmbedder, scheduler: Scheduler) -> AsyncIterator[RagEngine]:
    yield RagEngine(tmp_path, embedder, scheduler)
    scheduler.close()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def reopened(index: Path, name: str = "notes") -> Collection:
    """What another process would read from the disk now."""
    return Collection(index / name)


def ids_of(index: Path, name: str = "notes") -> list[str]:
    return sorted(document.id for document in reopened(index, name).snapshot.content().documents)


async def described(engine: RagEngine, name: str = "notes") -> CollectionInfo:
    return await engine.describe(name, deadline=soon())
