"""The store: versions and aliases of models on disk.

    MODELS/NAME/VERSION/          an artefact (`artefact.py`)
    MODELS/NAME/current           the version that is served; `candidate` likewise names one that may be next
    MODELS/NAME/history           versions that `current` named before, oldest first
    MODELS/NAME/VERSION.use.json  what the version took when it was loaded, by engine

`publish.py` writes there. Methods read and write files: call them on a thread.
"""

import contextlib
import errno
import fcntl
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from server.domain.errors import ModelUnavailable, ModelVersionNotFound, StorageFull
from server.models.artefact import (
    MANIFEST,
    POINTER,
    Artefact,
    file_sha256,
    open_artefact,
    open_version,
    read_pointer,
    write_durably,
)

log = logging.getLogger(__name__)

CURRENT, CANDIDATE, PREVIOUS = POINTER, "candidate", "previous"
_HISTORY = "history"
_HISTORY_LENGTH = 8


@dataclass(frozen=True)
class Use:
    """What loading a version took: bytes that stay, bytes at the peak, seconds. The largest seen so far."""

    resident_bytes: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Mark:
    """Changes whenever the pointer is written."""

    modified_ns: int
    inode: int


class ModelStore:
    """The folder `models`."""

    def __init__(self, models: Path) -> None:
        self.models = models

    def open(self, name: str) -> tuple[Artefact, str]:
        """The current version, or the last one that was current and is whole, with what ails the current one.

        Raises ModelUnavailable with what is wrong with the current one if there is no such version either.
        """
        try:
            return open_artefact(self.models, name), ""
        except ModelUnavailable as damaged:
            for version in reversed(self._history(name)):
                with contextlib.suppress(ModelUnavailable):
                    artefact = open_version(self.models, name, version)
                    return artefact, damaged.message
            raise

    def open_version(self, name: str, version: str) -> Artefact:
        """A version, checked. Raises ModelUnavailable."""
        return open_version(self.models, name, version)

    def resolve(self, name: str, target: str) -> str:
        """The version of that name, or the one that the alias of that name means. Raises ModelVersionNotFound."""
        versions = self.versions(name)
        version = target if target in versions else self.aliases(name).get(target, "")
        if version not in versions:
            raise ModelVersionNotFound(name, target, [*versions, *self.aliases(name)])
        return version

    def versions(self, name: str) -> list[str]:
        """Every version that is there, whole or not, sorted."""
        home = self.models / name
        return sorted(path.parent.name for path in home.glob(f"[!.]*/{MANIFEST}"))

    def aliases(self, name: str) -> dict[str, str]:
        """Versions by alias; what cannot be read is left out."""
        found: dict[str, str] = {}
        for alias in (CURRENT, CANDIDATE):
            with contextlib.suppress(OSError, ValueError):
                found[alias] = read_pointer(self.models / name / alias)
        earlier = [version for version in self._history(name) if version != found.get(CURRENT)]
        return found | ({PREVIOUS: earlier[-1]} if earlier else {})

    def digest(self, name: str, alias: str = CURRENT) -> tuple[str, str]:
        """Version and manifest digest that an alias means, nothing checked; empty if it means nothing."""
        version = self.aliases(name).get(alias, "")
        return version, self.digest_of(name, version) if version else ""

    def digest_of(self, name: str, version: str) -> str:
        """The digest of a version's manifest; empty if there is none."""
        try:
            return f"sha256:{file_sha256(self.models / name / version / MANIFEST)}"
        except OSError:
            return ""

    def point(self, name: str, alias: str, version: str) -> None:
        """Move an alias. Before `current` leaves a version, that version is noted in the history.

        Raises StorageFull, or ModelUnavailable if the folder cannot be written.
        """
        try:
            with alone(self.models / name):
                self._point(name, alias, version)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFull("the disk is full; the alias is where it was") from error
            why = f'the folder of model "{name}" cannot be written: {error.strerror}'
            raise ModelUnavailable(why, metadata={"model": name}) from error

    def _point(self, name: str, alias: str, version: str) -> None:
        home = self.models / name
        before = self.aliases(name).get(CURRENT)
        if alias == CURRENT and before not in (None, version):
            kept = [earlier for earlier in self._history(name) if earlier != before]
            lines = [*kept[1 - _HISTORY_LENGTH :], before]
            write_durably(home / _HISTORY, "".join(f"{line}\n" for line in lines).encode())
        write_durably(home / alias, f"{version}\n".encode())

    def mark(self, name: str) -> Mark | None:
        """Tells whether `current` was written since the last look; None while it is missing."""
        try:
            found = (self.models / name / CURRENT).stat()
        except OSError:
            return None
        return Mark(found.st_mtime_ns, found.st_ino)

    def marks(self, names: Iterable[str]) -> dict[str, Mark | None]:
        """The marks of several models."""
        return {name: self.mark(name) for name in names}

    def use(self, artefact: Artefact, engine: str) -> Use | None:
        """What this version took on this engine when it was loaded before."""
        try:
            return Use(**json.loads(_use_file(artefact).read_bytes())[engine])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note_use(self, artefact: Artefact, engine: str, use: Use) -> Use:
        """Keep the largest, for the next load here or after a restart; return it. A read-only folder keeps none."""
        if known := self.use(artefact, engine):
            use = Use(
                max(known.resident_bytes, use.resident_bytes),
                max(known.peak_bytes, use.peak_bytes),
                max(known.seconds, use.seconds),
            )
        if use == known:
            return use
        path = _use_file(artefact)
        try:
            with contextlib.suppress(ValueError):
                others = json.loads(path.read_bytes()) if path.exists() else {}
            write_durably(path, json.dumps({**others, engine: asdict(use)}, indent=2).encode())
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
    """Beside the version's folder, for in it lies only what the manifest vouches for."""
    return artefact.path.with_name(f"{artefact.path.name}.use.json")


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Keep other publishers of this model waiting."""
    with (home / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
