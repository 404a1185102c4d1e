"""ModelStore: versions and aliases of models on disk.

    MODELS/NAME/VERSION/          an artefact (`artefact.py`)
    MODELS/NAME/current           the version that is served; `candidate` likewise names one that may be next
    MODELS/NAME/history           versions that `current` named before, oldest first
    MODELS/NAME/VERSION.use.json  what the version took when it was loaded, by engine

`publish.py` adds versions. All methods block: call them on a thread.
"""

import contextlib
import errno
import fcntl
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
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
    """What loading a version took at most so far: bytes that stay, bytes at the peak, seconds."""

    resident_bytes: int
    peak_bytes: int
    seconds: float


Mark = tuple[int, int]  # differs after every write of `current`


class ModelStore:
    """The folder `models`."""

    def __init__(self, models: Path) -> None:
        self.models = models

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
        """The version that a version or an alias means. Raises ModelVersionNotFound."""
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
        earlier = [version for version in self._history(name) if version != found.get(CURRENT)]
        return found | ({PREVIOUS: earlier[-1]} if earlier else {})

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

        Raises StorageFull, or ModelUnavailable if the folder cannot be written.
        """
        try:
            with publishing(self.models / name):
                self._point(name, alias, version)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFull("the disk is full; the alias is where it was") from error
            why = f'the folder of model "{name}" cannot be written: {error.strerror}'
            raise ModelUnavailable(why, metadata={"model": name}) from error

    def _point(self, name: str, alias: str, version: str) -> None:
        folder = self.models / name
        before = self.aliases(name).get(CURRENT)
        if alias == CURRENT and before not in (None, version):
            kept = [earlier for earlier in self._history(name) if earlier != before]
            lines = [*kept[1 - _HISTORY_LENGTH :], before]
            write_durably(folder / _HISTORY, "".join(f"{line}\n" for line in lines).encode())
        write_durably(folder / alias, f"{version}\n".encode())

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
        try:
            return Use(**json.loads(_use_file(artefact).read_bytes())[engine])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note_use(self, artefact: Artefact, engine: str, use: Use) -> Use:
        """Keep the larger numbers on disk, and return them. In a read-only folder they are lost."""
        if known := self.use(artefact, engine):
            use = Use(*map(max, astuple(known), astuple(use)))
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
    """Beside the version's folder, which has only files of the manifest."""
    return artefact.path.with_name(f"{artefact.path.name}.use.json")


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[None]:
    """Hold the lock of a model's folder; other publishers wait."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
