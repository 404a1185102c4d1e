"""The manifest of a segment: what it is, and its files with their SHA-256.

A newer format is refused. Unknown fields are ignored.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from server.domain.errors import CollectionTooNew
from server.domain.models import ModelIdentity
from server.domain.rag import GenerationInfo
from server.models.artefact import MANIFEST, FileEntry, write_durably
from server.vectorstore.damage import damage_as_error, read_small
from server.vectorstore.layout import FORMAT

T = TypeVar("T")
INDEX = "vectors.index"  # the approximate index of a large collection
_FILES = frozenset(  # of every segment
    f"{name}.{suffix}"
    for name, suffixes in {
        "documents": ("utf8", "ends.npy"),
        "ids": ("utf8", "ends.npy", "rows.npy"),
        "terms": ("utf8", "ends.npy", "numbers.npy"),
        "postings": ("npy", "ends.npy"),
        "vectors": ("npy",),
        "passages": ("npy",),
    }.items()
    for suffix in suffixes
)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the last file of a segment."""
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a segment's manifest says; `raw` has its unknown fields, too."""

    info: GenerationInfo
    dimensions: int
    index: dict[str, Any] | None
    files: dict[str, FileEntry]
    raw: dict[str, Any]


def read_manifest(folder: Path, collection: str) -> Manifest:
    """The manifest of a segment. Raises Damaged if it is damaged or of another segment, CollectionTooNew, OSError."""
    with damage_as_error():
        try:
            raw = json.loads(read_small(folder / MANIFEST))
        except (ValueError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raise ValueError("the manifest is not a JSON object")
        written = _typed(raw, "format", int)
        if written > FORMAT:
            raise CollectionTooNew(collection, f"generation {folder.name} has format {written}")
        if written != FORMAT:
            raise ValueError("it was written in another format")
        if (raw["collection"], raw["generation"]) != (collection, int(folder.name)):
            raise ValueError("the manifest is that of another generation")
        files = {
            name: FileEntry(_typed(entry, "sha256", str), _typed(entry, "bytes", int))
            for name, entry in _typed(raw, "files", dict).items()
        }
        if missing := _FILES.difference(files):
            raise ValueError(f"the manifest lacks {min(missing)}")
        embedder = _typed(raw, "embedder", dict)
        info = GenerationInfo(
            generation=_typed(raw, "generation", int),
            create_time=datetime.fromisoformat(_typed(raw, "created", str)).astimezone(UTC),
            document_count=_typed(raw, "documents", int),
            passage_count=_typed(raw, "passages", int),
            size_bytes=sum(entry.bytes for entry in files.values()),
            model=ModelIdentity(*(_typed(embedder, name, str) for name in ("name", "version", "digest"))),
            origin=_typed(raw, "origin", str),
        )
        index = None if raw["index"] is None else _typed(raw, "index", dict)
        if index is not None and INDEX not in files:
            raise ValueError(f"the manifest lacks {INDEX}")
        return Manifest(info, _typed(raw, "dimensions", int), index, files, raw)


def _typed(fields: dict[str, Any], name: str, kind: type[T]) -> T:
    """A field of the manifest. Raises ValueError if it has another type or cannot be sent."""
    value = fields[name]
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**63):
        raise ValueError(f"the manifest's {name} is {type(value).__name__}")
    if isinstance(value, str):
        value.encode()
    return value
