"""A loopback index, a cache, and what fetches from one into the other."""

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.training.index_server import IndexServer, running_index
from training.fetch.cache import Cache
from training.fetch.downloads import Downloader
from training.fetch.fetcher import Fetcher
from training.fetch.hub import Hub
from training.fetch.lock import Input, read_lock
from training.fetch.package_index import PackageIndex
from training.progress import PlainProgress

LICENCE = {"name": "MIT", "url": "https://example.org/licence", "attribution": "nobody"}


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with running_index() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def new_fetcher(index: IndexServer, cache: Cache) -> Callable[..., Fetcher]:
    """Makes what a new process would have."""

    def new(hub: str | None = None) -> Fetcher:
        downloader = Downloader(pause_seconds=0.01)
        packages = PackageIndex(downloader, (f"{index.url}/simple",))
        return Fetcher(cache, downloader, Hub(hub or "http://127.0.0.1:9", timeout=0.3), packages, PlainProgress())

    return new


@pytest.fixture
def lock(tmp_path: Path) -> Callable[..., Input]:
    """Writes a lock file with one input, and reads it."""

    def write(contents: Mapping[str, bytes], *sources: Mapping[str, Any]) -> Input:
        pins = [
            {"path": name, "bytes": len(data), "sha256": sha256(data).hexdigest()} for name, data in contents.items()
        ]
        entry = {"name": "thing", "title": "test", "licence": LICENCE, "files": pins, "sources": sources}
        path = tmp_path / "lock.json"
        path.write_text(json.dumps({"inputs": [entry]}))
        return read_lock(path)["thing"]

    return write
