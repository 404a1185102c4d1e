"""The cache: fetched files by digest, and finished artefacts by recipe.

    blobs/sha256/DIGEST              a fetched file, read-only; its name is its SHA-256
    partial/DIGEST.NAME              an unfinished download, which the next run resumes
    artefacts/NAME/RECIPE-DIGEST/    a finished artefact with its manifest
    kept/NAME/                       intermediate results of an artefact, for its next build
    lock                             held by the one process that fetches and builds

Everything is written under another name, synced and renamed, so every file is complete. Deleting the folder is safe.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.models.artefact import file_sha256, sync_folder
from training.errors import WrongContent
from training.fetch.lock import Input, PinnedFile


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

    def has(self, file: PinnedFile) -> bool:
        """Whether the file is there with its size. Its digest is checked when it is used."""
        try:
            return (self._blobs / file.sha256).stat().st_size == file.bytes
        except FileNotFoundError:
            return False

    def missing(self, item: Input) -> list[PinnedFile]:
        """The files of an input that must still be fetched."""
        return [file for file in item.files if not file.optional and not self.has(file)]

    def verified(self, file: PinnedFile) -> Path:
        """The file's path, after a check of its digest (once a process). A damaged file is removed: WrongContent."""
        path = self._blobs / file.sha256
        if file.sha256 not in self._verified:
            if file_sha256(path) != file.sha256:
                path.unlink()
                raise WrongContent(f"{file.path} in the cache was damaged and has been removed; run it again")
            self._verified.add(file.sha256)
        return path

    def partial(self, sha256: str, name: str) -> Path:
        """Where a file with this digest is downloaded to. The ending of `name` tells zip from tar."""
        self._partial.mkdir(parents=True, exist_ok=True)
        return self._partial / f"{sha256}.{name}"

    def adopt(self, path: Path, file: PinnedFile) -> None:
        """Move a downloaded file to the blobs. Raises WrongContent unless it is the pinned one."""
        if file_sha256(path) != file.sha256:
            raise WrongContent(f"{file.path} has another SHA-256")
        self._blobs.mkdir(parents=True, exist_ok=True)
        _sync(path)
        path.chmod(0o444)
        path.replace(self._blobs / file.sha256)
        sync_folder(self._blobs)
        self._verified.add(file.sha256)

    def store(self, file: PinnedFile, chunks: Iterable[bytes]) -> None:
        """Write a blob. Raises WrongContent unless it is the pinned one."""
        self._partial.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._partial, delete=False) as target:
            path = Path(target.name)
            try:
                target.writelines(chunks)
                target.flush()
                self.adopt(path, file)
            finally:
                path.unlink(missing_ok=True)

    def artefact(self, name: str, digest: str) -> Path:
        """The folder of the artefact `name` made by the recipe with this digest. It exists once it is finished."""
        return self.root / "artefacts" / name / digest

    def intermediate(self, name: str) -> Path:
        """A folder for what takes long to compute and does not change between builds of an artefact."""
        folder = self.root / "kept" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def building(self, name: str, digest: str) -> Iterator[Path]:
        """An empty folder to fill; without an exception it becomes the artefact's folder."""
        target = self.artefact(name, digest)
        unfinished = target.with_name(f".{digest}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_file():
                _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
        sync_folder(target.parent)

    @contextmanager
    def exclusive(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep other processes from fetching and building; `on_wait` is called if one does it now."""
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
