"""Gets inputs into the cache from the sources of the lock file, in their order."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from training.errors import ArchiveRefused, DownloadFailed, FetchFailed, WrongContent
from training.fetch.archives import read_members
from training.fetch.cache import Cache
from training.fetch.downloads import Downloader
from training.fetch.hub import Hub
from training.fetch.lock import WHOLE, Distribution, HubSource, Input, PackageSource, PinnedFile
from training.fetch.package_index import PackageIndex
from training.progress import Progress

T = TypeVar("T")

CONNECTIONS = 4  # simultaneous downloads of all inputs


class Fetcher:
    """Fetches inputs into the cache; may be used from several threads."""

    def __init__(self, cache: Cache, downloader: Downloader, hub: Hub, index: PackageIndex, progress: Progress) -> None:
        self._cache = cache
        self._downloader = downloader
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
                else:
                    self._from_hub(item, source)
            except (DownloadFailed, ArchiveRefused, WrongContent) as error:
                failures.append(f"{source}: {error}")
                continue
            if missing := self._cache.missing(item):
                failures.append(f"{source}: lacks {', '.join(file.path for file in missing)}")
            else:
                self._progress.say(f"{item.name}: from {source}")
                return
        tried = ". ".join(failures)
        raise FetchFailed(
            f"no source has {item.name}. {tried}. Run it again later, or with PIP_INDEX_URL set to a mirror"
        )

    def _from_hub(self, item: Input, source: HubSource) -> None:
        if not self._hub.reachable():
            raise DownloadFailed("not reachable")
        files = self._cache.missing(item)
        with self._progress.task(item.name, sum(file.bytes for file in files), "bytes") as advance:

            def fetch(file: PinnedFile) -> None:
                part = self._cache.partial(file.sha256, "part")
                with self._connections:
                    url = self._hub.url_of(source, file.path)
                    self._downloader.download(url, part, file.bytes, file.sha256, advance)
                self._cache.adopt(part, file)

            _for_all(fetch, files)

    def _from_packages(self, item: Input, source: PackageSource) -> None:
        distributions = source.distributions
        archives = {each: self._cache.partial(each.sha256, each.file) for each in distributions}
        with self._progress.task(item.name, sum(each.bytes for each in distributions), "bytes") as advance:

            def fetch(each: Distribution) -> None:
                with self._connections:
                    url = self._index.url_of(each)
                    self._downloader.download(url, archives[each], each.bytes, each.sha256, advance)

            _for_all(fetch, distributions)
        try:
            if len(distributions) == 1:
                self._extract(item, source, archives[distributions[0]])
            else:
                self._join(item, source, archives.values())
        finally:
            for archive in archives.values():
                archive.unlink(missing_ok=True)

    def _extract(self, item: Input, source: PackageSource, archive: Path) -> None:
        """Take all files out of one archive in one pass."""
        by_member = {source.members_of(file.path)[0]: file for file in item.files}
        if WHOLE in by_member:
            self._cache.adopt(archive, by_member[WHOLE])
            return
        wanted = {member: file.bytes for member, file in by_member.items()}
        for member, chunks in read_members(archive, wanted):
            self._cache.store(by_member[member], chunks)

    def _join(self, item: Input, source: PackageSource, archives: Iterable[Path]) -> None:
        """Write files whose pieces are in several archives, one after the other."""

        def pieces(file: PinnedFile) -> Iterator[bytes]:
            for archive, member in zip(archives, source.members_of(file.path), strict=True):
                for _, chunks in read_members(archive, {member: file.bytes}):
                    yield from chunks

        for file in self._cache.missing(item):
            self._cache.store(file, pieces(file))


def _for_all(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Do `work` for all items, several at once; raise the first failure."""
    with ThreadPoolExecutor(CONNECTIONS) as executor:
        for future in [executor.submit(work, item) for item in items]:
            future.result()
