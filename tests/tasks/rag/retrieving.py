"""What tests of the retriever share: fixtures, to be imported, and looks at the disk."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.domain.rag import IndexDescription
from server.inference.scheduler import Scheduler
from server.tasks.rag.retriever import FaissRetriever
from server.vectorstore.ann_index import build_index
from server.vectorstore.collection import Collection
from tests.tasks.rag.hashing import HashingEmbedder


@pytest.fixture
def lanes() -> Scheduler:
    return Scheduler(1, 16)


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
async def retriever(tmp_path: Path, embedder: HashingEmbedder, lanes: Scheduler) -> AsyncIterator[FaissRetriever]:
    yield FaissRetriever(tmp_path, embedder, lanes)
    lanes.close()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def reopened(index: Path, name: str = "notes") -> Collection:
    """What another process would read from the disk now."""
    return Collection(index / name, build_index)


def ids_of(index: Path, name: str = "notes") -> list[str]:
    return sorted(document.id for document in reopened(index, name).snapshot.content().documents)


async def described(retriever: FaissRetriever, name: str = "notes") -> IndexDescription:
    return await retriever.describe(name, deadline=soon())
