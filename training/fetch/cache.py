"""The cache: fetched files by digest, and finished artefacts by recipe.

    blobs/sha256/DIGEST              a fetched file, read-only; its name is its SHA-256
    partial/DIGEST                   a download under way; the next run resumes it
    artefacts/NAME/RECIPE-DIGEST/    a finished artefact with its manifest, or an intermediate result
    kept/NAME/                       intermediate results of an artefact, for its next making
    lock                             held by the one process that fetches and builds

Everything is written aside, synced and renamed, so what is there is whole. Deleting the folder is always safe.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.models.artefact import file_sha256, sync_folder
from training.errors import WrongContent
from training.fetch.lock import Content, Input


def default_root() -> Path:
    """QUINTET_CACHE, else quintet/ in the user's cache folder (XDG)."""
    if path := os.environ.get("QUINTET_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quintet"


class Cache:
    """A folder on disk, shared by all checkouts of one user."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self._blobs = self.root / "blobs" / "sha256"
        self._partial = self.root / "partial"
        self._verified: set[str] = set()

    def has(self, content: Content) -> bool:
        """Whether the file is there with its size. Its digest is checked when it is used."""
        try:
            return (self._blobs / content.sha256).stat().st_size == content.bytes
        except FileNotFoundError:
            return False

    def missing(self, item: Input) -> list[Content]:
        """The files of an input that must still be fetched."""
        return [content for content in item.contents if not content.optional and not self.has(content)]

    def verified(self, content: Content) -> Path:
        """The file's path, after a look at every byte (once a process); WrongContent if it was damaged."""
        path = self._blobs / content.sha256
        if content.sha256 not in self._verified:
            if file_sha256(path) != content.sha256:
                path.unlink()
                raise WrongContent(f"{content.path} in the cache was damaged and has been removed; run it again")
            self._verified.add(content.sha256)
        return path

    def partial(self, sha256: str, name: str) -> Path:
        """Where the download of a file with this digest lies. `name` keeps its ending, which tells zip from tar."""
        self._partial.mkdir(parents=True, exist_ok=True)
        return self._partial / f"{sha256}.{name}"

    def adopt(self, part: Path, content: Content) -> None:
        """Make a downloaded and verified file a blob."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        _sync(part)
        part.chmod(0o444)
        part.replace(self._blobs / content.sha256)
        sync_folder(self._blobs)
        self._verified.add(content.sha256)

    @contextmanager
    def writer(self, content: Content) -> Iterator[Callable[[bytes], None]]:
        """Write a blob in pieces; on leaving, WrongContent unless it is the pinned one."""
        self._partial.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=self._partial)
        try:
            with open(descriptor, "wb") as file:

                def write(chunk: bytes) -> None:
                    digest.update(chunk)
                    file.write(chunk)

                yield write
            if digest.hexdigest() != content.sha256:
                raise WrongContent(f"{content.path} has another SHA-256")
            self.adopt(Path(name), content)
        finally:
            Path(name).unlink(missing_ok=True)

    def artefact(self, name: str, digest: str) -> Path:
        """The folder of the artefact `name` made by the recipe with this digest; it exists once it is finished."""
        return self.root / "artefacts" / name / digest

    def kept(self, name: str) -> Path:
        """Where the making of an artefact keeps what took long."""
        folder = self.root / "kept" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def building(self, name: str, digest: str) -> Iterator[Path]:
        """An empty folder that becomes the artefact's on leaving, unless an exception passes."""
        home = self.root / "artefacts" / name
        home.mkdir(parents=True, exist_ok=True)
        aside = home / f".{digest}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                _sync(path)
        target = home / digest
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
        sync_folder(home)

    @contextmanager
    def exclusive(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep other processes from fetching and building meanwhile; `on_wait` is called if one is at it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
