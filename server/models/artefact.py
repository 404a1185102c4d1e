"""Artefacts on disk. Opening one checks every file against its manifest, because joblib and pickle files are code.

MODELS/NAME/VERSION/manifest.json     the files with their SHA-256, and what is known of the model
MODELS/NAME/VERSION/...               the files
MODELS/NAME/current                   the version that is served (`store.py`)
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.domain.errors import ModelUnavailable
from server.domain.files import read_regular
from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.domain.priority import rest
from server.models import manifest as manifests

MANIFEST = "manifest.json"
POINTER = "current"
_CHUNK = 1 << 20
_MOST_BYTES = 1 << 24  # of a manifest, which has a line or two a file


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. `schema` has what the engine needs: labels, features, pooling, lengths."""

    name: str
    version: str
    created: str
    files: dict[str, FileEntry]
    licence: str
    libraries: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    schema: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


@dataclass(frozen=True)
class Artefact:
    """A verified folder with its manifest and the manifest's digest ("sha256:...")."""

    path: Path
    manifest: Manifest
    digest: str

    def part(self, name: str) -> Path:
        """A file or folder of the artefact. Raises ModelUnavailable if the manifest has none of that name."""
        if not any(file == name or file.startswith(f"{name}/") for file in self.manifest.files):
            raise unusable(self.manifest.name, f"it has no {name}")
        return self.path / name

    def schema(self, key: str) -> Any:
        """A value of the manifest's schema. Raises ModelUnavailable if it is not there."""
        if key not in self.manifest.schema:
            raise unusable(self.manifest.name, f'its schema lacks "{key}"')
        return self.manifest.schema[key]

    def describe(self, task: ModelTask, engine: str, **more: Any) -> ModelDescription:
        """What ModelService says of the model that `engine` makes; `more` are other fields of ModelDescription.

        Raises ModelUnavailable for what it cannot say.
        """
        known = self.manifest
        description = ModelDescription(
            identity=ModelIdentity(known.name, known.version, self.digest),
            task=task,
            engine=engine,
            metrics=known.metrics,
            licence=known.licence,
            size_bytes=known.size_bytes,
            create_time=datetime.fromisoformat(known.created),
            **more,
        )
        if fault := manifests.fault_of(description):
            raise unusable(known.name, fault)
        return description


def unusable(name: str, why: str) -> ModelUnavailable:
    """The error for an artefact that is missing, damaged or does not fit its engine."""
    return ModelUnavailable(
        f'artefact "{name}" cannot be used: {why}. Make it with: make train ONLY={name}', metadata={"model": name}
    )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. A background thread pauses between the pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        begun = time.thread_time()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            rest(time.thread_time() - begun)
            begun = time.thread_time()
    return digest.hexdigest()


def write_manifest(folder: Path, *, name: str, version: str, licence: str, **known: Any) -> None:
    """Hash every file in `folder` and write the manifest. `known` are other fields of Manifest."""
    files = {
        path.relative_to(folder).as_posix(): entry_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    save_manifest(folder, Manifest(name, version, created, files, licence, **known))


def save_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    write_durably(folder / MANIFEST, text.encode())


def entry_of(path: Path) -> FileEntry:
    return FileEntry(file_sha256(path), path.stat().st_size)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file: after a crash it has the old content or the new, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync(2) of a folder, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_artefact(models: Path, name: str) -> Artefact:
    """The current version of `name`, as open_version() returns it."""
    with _refusing(name):
        version = read_pointer(models / name / POINTER)
    return open_version(models, name, version)


def open_version(models: Path, name: str, version: str) -> Artefact:
    """A version of `name` after checking every file. Reads every byte: call it on a thread.

    Raises ModelUnavailable, with the command that makes the artefact, if anything is missing or differs.
    """
    folder = models / name / version
    with _refusing(name):
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (name, version):
            raise ValueError(f"the manifest is that of {manifest.name} {manifest.version}")
        for relative, entry in manifest.files.items():
            check_file(folder, relative, entry)
        for path in folder.rglob("*"):  # libraries load whole folders
            relative = path.relative_to(folder).as_posix()
            if not path.is_dir() and relative not in manifest.files and relative != MANIFEST:
                raise ValueError(f"{relative} is not in the manifest")
        return Artefact(folder, manifest, manifest_digest(folder))


def open_part(models: Path, name: str, part: str) -> Path:
    """One file of the current version of `name`, checked without reading the others. Raises ModelUnavailable."""
    with _refusing(name):
        folder = models / name / read_pointer(models / name / POINTER)
        check_file(folder, part, read_manifest(folder).files[part])
        return folder / part


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turns errors into ModelUnavailable with a reason that has no paths, because callers see it."""
    try:
        yield
    except FileNotFoundError as error:
        raise unusable(name, f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        which = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        raise unusable(name, f"{which}{(error.strerror or 'it cannot be read').lower()}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise unusable(name, f"{MANIFEST} is not JSON, lacks a field or has one of another type") from error
    except ValueError as error:
        raise unusable(name, str(error)) from error


def read_pointer(path: Path) -> str:
    """The version that a pointer names. Raises OSError, or ValueError if that cannot be a folder's name."""
    version = read_regular(path, _MOST_BYTES).decode(errors="replace").strip()
    if not is_folder_name(version):
        raise ValueError(f"the pointer names {version!r}")
    return version


def is_folder_name(version: str) -> bool:
    """Whether it can be a visible folder of its model: no path that leads elsewhere."""
    return bool(version) and "/" not in version and "\0" not in version and not version.startswith(".")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, unchecked. Raises OSError, ValueError, KeyError or TypeError.

    Fields that this release does not know are ignored.
    """
    raw = manifests.parse(read_regular(folder / MANIFEST, _MOST_BYTES))
    raw["files"] = {name: FileEntry(entry["sha256"], entry["bytes"]) for name, entry in raw["files"].items()}
    return Manifest(**{known.name: raw[known.name] for known in fields(Manifest) if known.name in raw})


def manifest_digest(folder: Path) -> str:
    """The digest ("sha256:...") of a folder's manifest. Raises OSError."""
    return f"sha256:{hashlib.sha256(read_regular(folder / MANIFEST, _MOST_BYTES)).hexdigest()}"


def check_file(folder: Path, relative: str, entry: FileEntry) -> None:
    """Raises ValueError or OSError if a file differs from its manifest's entry. Reads every byte."""
    path = folder / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ValueError(f"the manifest names a file outside: {relative}")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a named pipe would block
        raise ValueError(f"{relative} is not a regular file")
    if found.st_size != entry.bytes:
        raise ValueError(f"{relative} has {found.st_size} bytes instead of {entry.bytes}")
    if file_sha256(path) != entry.sha256:
        raise ValueError(f"{relative} does not match its SHA-256")
