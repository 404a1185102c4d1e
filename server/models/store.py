"""ModelStore: versions and aliases of models on disk.

    MODELS/NAME/VERSION/          an artefact (`artefact.py`)
    MODELS/NAME/current           the version that is served; `candidate` likewise names one that may be next
    MODELS/NAME/history           versions that `current` named before, oldest first
    MODELS/NAME/VERSION.use.json  what the version took when it was loaded, by engine

A version is written aside, synced and renamed, and then its alias moves. If that is interrupted, aliases still name
complete versions, and the next publishing removes the remains. All methods block: call them on a thread.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from server.domain.errors import ModelUnavailable, ModelVersionNotFound, StorageFull
from server.models.artefact import (
    MANIFEST,
    POINTER,
    Artefact,
    file_sha256,
    open_artefact,
    open_version,
    read_manifest,
    read_pointer,
    sync_folder,
    write_durably,
)

log = logging.getLogger(__name__)

CURRENT, CANDIDATE, PREVIOUS = POINTER, "candidate", "previous"
_HISTORY = "history"
_HISTORY_LENGTH = 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class Use(NamedTuple):
    """What loading a version took at most so far: bytes that stay, bytes at the peak, seconds."""

    resident_bytes: int
    peak_bytes: int
    seconds: float


Mark = tuple[int, int]  # differs after every write of `current`


class ModelStore:
    """The folder `models`."""

    def __init__(self, models: Path) -> None:
        self.models = models

    def publish(self, source: Path, alias: str | None = CURRENT) -> Path:
        """Make the finished artefact `source` a version, named by `alias`; return its folder.

        Files are hard-linked if that is possible, else copied. An existing version is replaced if its manifest differs.
        """
        manifest = read_manifest(source)
        name, version = manifest.name, manifest.version
        model = self.models / name
        model.mkdir(parents=True, exist_ok=True)
        target, aside = model / version, model / f".{version}"
        with _locked(model):
            shutil.rmtree(aside, ignore_errors=True)
            if self.digest_of(name, version) != f"sha256:{file_sha256(source / MANIFEST)}":
                shutil.copytree(source, aside, copy_function=place)
                for folder in (path for path in (*aside.rglob("*"), aside) if path.is_dir()):
                    sync_folder(folder)
                if target.exists():
                    _exchange(aside, target)
                    shutil.rmtree(aside)
                else:
                    aside.replace(target)
                sync_folder(model)
        if alias:
            self.point(name, alias, version)
        return target

    def sync(self, name: str) -> None:
        """Mirror what the aliases of `name` mean elsewhere (registry.py). Raises RegistryFailed."""

    def open(self, name: str) -> tuple[Artefact, str]:
        """The current version; if that is damaged, the last undamaged one that was current, with the damage.

        Raises ModelUnavailable with the damage if there is no such version either.
        """
        try:
            return open_artefact(self.models, name), ""
        except ModelUnavailable as damaged:
            for version in reversed(self._history(name)):
                with contextlib.suppress(ModelUnavailable):
                    return open_version(self.models, name, version), damaged.message
            raise

    def resolve(self, name: str, target: str) -> str:
        """The version that a version or an alias means. Raises ModelVersionNotFound and RegistryFailed."""
        versions = self.versions(name)
        version = target if target in versions else self.aliases(name).get(target, "")
        if version not in versions:
            raise ModelVersionNotFound(name, target, [*versions, *self.aliases(name)])
        return version

    def versions(self, name: str) -> list[str]:
        """All versions, damaged or not, sorted."""
        return sorted(path.parent.name for path in (self.models / name).glob(f"[!.]*/{MANIFEST}"))

    def aliases(self, name: str) -> dict[str, str]:
        """Versions by alias, without aliases that cannot be read."""
        found: dict[str, str] = {}
        for alias in (CURRENT, CANDIDATE):
            with contextlib.suppress(OSError, ValueError):
                found[alias] = read_pointer(self.models / name / alias)
        for version in self._history(name):
            if version != found.get(CURRENT):
                found[PREVIOUS] = version
        return found

    def digest(self, name: str, alias: str = CURRENT) -> tuple[str, str]:
        """Version and manifest digest that an alias means, unchecked; empty if it means none."""
        version = self.aliases(name).get(alias, "")
        return version, self.digest_of(name, version) if version else ""

    def digest_of(self, name: str, version: str) -> str:
        """The digest of a version's manifest; empty if there is none."""
        try:
            return f"sha256:{file_sha256(self.models / name / version / MANIFEST)}"
        except OSError:
            return ""

    def point(self, name: str, alias: str, version: str) -> None:
        """Move an alias. The version that `current` leaves is added to the history first.

        Raises StorageFull, RegistryFailed, or ModelUnavailable if the folder cannot be written.
        """
        folder = self.models / name
        try:
            with _locked(folder):
                before = self.aliases(name).get(CURRENT)
                if alias == CURRENT and before not in (None, version):
                    kept = [earlier for earlier in self._history(name) if earlier != before]
                    lines = [*kept[1 - _HISTORY_LENGTH :], before]
                    write_durably(folder / _HISTORY, "".join(f"{line}\n" for line in lines).encode())
                write_durably(folder / alias, f"{version}\n".encode())
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFull("the disk is full; the alias is where it was") from error
            why = f'the folder of model "{name}" cannot be written: {error.strerror}'
            raise ModelUnavailable(why, metadata={"model": name}) from error

    def marks(self, names: Iterable[str]) -> dict[str, Mark | None]:
        """What differs after every write of a model's `current`; None while that is missing."""
        marks: dict[str, Mark | None] = dict.fromkeys(names)
        for name in marks:
            with contextlib.suppress(OSError):
                found = (self.models / name / CURRENT).stat()
                marks[name] = (found.st_mtime_ns, found.st_ino)
        return marks

    def use(self, artefact: Artefact, engine: str) -> Use | None:
        """What this version took on this engine when it was loaded; None if it never was."""
        with contextlib.suppress(KeyError, TypeError):
            return Use(**_read_uses(_use_file(artefact))[engine])
        return None

    def note_use(self, artefact: Artefact, engine: str, use: Use) -> Use:
        """Keep the larger numbers on disk, and return them. In a read-only folder they are lost."""
        if known := self.use(artefact, engine):
            use = Use._make(map(max, known, use))
        if use == known:
            return use
        path = _use_file(artefact)
        try:
            write_durably(path, json.dumps({**_read_uses(path), engine: use._asdict()}, indent=2).encode())
        except OSError as error:
            log.debug("%s cannot be written: %s", path.name, error.strerror)
        return use

    def _history(self, name: str) -> list[str]:
        try:
            lines = (self.models / name / _HISTORY).read_text().split()
        except OSError:
            return []
        return [line for line in lines if "/" not in line and not line.startswith(".")]


def _use_file(artefact: Artefact) -> Path:
    """Beside the version's folder, which has only files of the manifest."""
    return artefact.path.with_name(f"{artefact.path.name}.use.json")


def _read_uses(path: Path) -> dict[str, Any]:
    """By engine; empty if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_bytes()))
    return {}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a model's folder; other publishers wait."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _exchange(left: Path, right: Path) -> None:
    """Swap two folders in one step with renameat2(2) of Linux; where that fails, with three renames."""
    paths = (os.fsencode(left.absolute()), os.fsencode(right.absolute()))
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None or rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        old = right.with_name(f"{left.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        right.replace(old)
        left.replace(right)
        old.replace(left)


def place(source: str, target: str) -> None:
    """Link a file, or copy it where that is not possible, and sync it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())
