"""ModelStore: versions and aliases of models on disk.

    MODELS/NAME/VERSION/          an artefact (`artefact.py`)
    MODELS/NAME/current           the version that is served; `candidate` likewise names one that may be next
    MODELS/NAME/history           versions that `current` named before, oldest first
    MODELS/NAME/VERSION.use.json  what the version took when it was loaded (`uses.py`)

A version is written aside, synced and renamed, and then its alias moves. If that is interrupted, aliases still name
complete versions, and the next publishing removes the remains. All methods block: call them on a thread.
"""

import contextlib
import errno
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

from server.domain.errors import ModelUnavailable, ModelVersionNotFound, RegistryFailed, StorageFull
from server.domain.files import read_regular
from server.models.artefact import (
    MANIFEST,
    POINTER,
    Artefact,
    is_folder_name,
    manifest_digest,
    open_artefact,
    open_version,
    read_manifest,
    read_pointer,
    sync_folder,
    write_durably,
)
from server.models.folders import exchange, locked, place, remove, state_of

log = logging.getLogger(__name__)

CURRENT, CANDIDATE, PREVIOUS = POINTER, "candidate", "previous"
_HISTORY = "history"
_HISTORY_LENGTH = 8
_MOST_HISTORY = 1 << 16  # bytes
Mark = tuple[tuple[object, ...], ...]  # differs after every change of `current` and of the files that it leads to


class Named(NamedTuple):
    """What an alias means in a registry: the registry's number of a version, and what its tags say of it."""

    model: str
    alias: str
    number: str
    version: str
    digest: str
    source: str


class VersionRefused(RegistryFailed):
    """A registry names a version that cannot be used: it is damaged, or could not be fetched now."""

    def __init__(self, version: str, message: str, *, is_damaged: bool) -> None:
        super().__init__(message)
        self.version = version
        self.is_damaged = is_damaged


class ModelStore:
    """The folder `models`. The methods of registries do nothing here (`registry.py`)."""

    has_registry = False

    def __init__(self, models: Path) -> None:
        self.models = models

    def publish(self, source: Path, alias: str | None = CURRENT) -> Path:
        """Make the finished artefact `source` a version, named by `alias`; return its folder.

        Files are hard-linked if that is possible, else copied. An existing version is replaced unless it is the same,
        undamaged.
        """
        manifest = read_manifest(source)
        name, version = manifest.name, manifest.version
        model = self.models / name
        model.mkdir(parents=True, exist_ok=True)
        target, aside = model / version, model / f".{version}"
        with locked(model):
            remove(aside)
            if not self.has(name, version, manifest_digest(source)):
                shutil.copytree(source, aside, copy_function=place)
                for folder in (path for path in (*aside.rglob("*"), aside) if path.is_dir()):
                    sync_folder(folder)
                if target.exists():
                    exchange(aside, target)
                    remove(aside)
                else:
                    aside.replace(target)
                sync_folder(model)
        if alias:
            self.point(name, alias, version)
        return target

    def prepare(self) -> None:
        """Import what asking the registry needs."""

    def look_up(self, name: str) -> list[Named]:
        """What the aliases mean in the registry. Raises RegistryFailed."""
        return []

    def fetch(self, named: Named) -> None:
        """Have that version and let its alias name it. Raises VersionRefused, and does so again without fetching."""

    def recheck(self, name: str) -> None:
        """Fetch what was refused or is damaged with the next fetch()."""

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
            return manifest_digest(self.models / name / version)
        except OSError:
            return ""

    def has(self, name: str, version: str, digest: str) -> bool:
        """Whether the version with this digest is here, undamaged. Reads every byte of it."""
        if self.digest_of(name, version) != digest:
            return False
        try:
            open_version(self.models, name, version)
        except ModelUnavailable:
            return False
        return True

    def point(self, name: str, alias: str, version: str) -> None:
        """Move an alias. The version that `current` leaves is added to the history first.

        Raises StorageFull, RegistryFailed, or ModelUnavailable if the folder cannot be written.
        """
        folder = self.models / name
        try:
            with locked(folder):
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

    def mark(self, name: str) -> Mark | None:
        """What differs after every change of `current` or of a file of the version that it names; None while `current`
        is missing. It reads no content but the pointer's.
        """
        folder = self.models / name
        try:
            found = [state_of(folder / CURRENT)]
        except OSError:
            return None
        with contextlib.suppress(OSError, ValueError):
            version = folder / read_pointer(folder / CURRENT)
            found += [state_of(version), *map(state_of, sorted(version.rglob("*")))]
        return tuple(found)

    def _history(self, name: str) -> list[str]:
        """Without lines that cannot be a version."""
        try:
            lines = read_regular(self.models / name / _HISTORY, _MOST_HISTORY).decode(errors="replace").split()
        except OSError:
            return []
        return [line for line in lines[-_HISTORY_LENGTH:] if is_folder_name(line)]
