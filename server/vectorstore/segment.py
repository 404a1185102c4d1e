"""The files of one generation of a collection, all immutable and mapped, so that opening it reads none of them whole.

manifest.json                  what it is, and the files with their SHA-256
vectors.npy                    float32 [passages, dimensions], rows of length 1
passages.npy                   int32 [passages, 3]: row of the document, first code point, the one after the last
documents.utf8, .ends.npy      a DocumentRecord each as JSON
ids.utf8, .ends.npy, .rows.npy the sorted ids, with the rows of their documents
terms.*, postings.*            the metadata: `terms.py`
vectors.index                  what finds vectors faster than comparing them all, in collections that are large enough
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.models.artefact import MANIFEST, write_durably
from server.vectorstore.files import (
    HashedFile,
    Strings,
    Writer,
    check_files,
    in_turns,
    read_array,
    read_strings,
    sorted_in_turns,
)
from server.vectorstore.layout import FORMAT
from server.vectorstore.metadata_index import MetadataIndex, MetadataIndexWriter, read_metadata_index

VECTORS, INDEX = "vectors.npy", "vectors.index"


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document as it was added."""

    id: str
    text: str
    title: str = ""
    uri: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmbedderRecord:
    """Which embedder made the vectors. Vectors of two embedders cannot be compared."""

    name: str
    version: str
    digest: str


# Builds the index of the vectors into the file, from that of an older generation if it likes, and returns what it needs
# to know when it opens it; or writes nothing and returns None if comparing all is fast enough.
Indexer = Callable[[NDArray[np.float32], HashedFile, "Generation | None"], dict[str, Any] | None]


@dataclass(frozen=True, eq=False)
class Generation:
    """An opened generation. `first` int64 [documents + 1]: rows of the passages at which documents begin."""

    folder: Path
    number: int
    created: datetime
    origin: str
    embedder: EmbedderRecord
    size_bytes: int
    vectors: NDArray[np.float32]
    passages: NDArray[np.int32]
    first: NDArray[np.int64]
    documents: Strings
    ids: Strings
    id_rows: NDArray[np.int32]
    terms: MetadataIndex
    index: dict[str, Any] | None

    def document(self, row: int) -> DocumentRecord:
        """The document of a row."""
        return DocumentRecord(**json.loads(self.documents[row]))

    def row_of(self, document_id: str) -> int | None:
        """The row of a document, None if it is not here."""
        at = bisect_left(self.ids, document_id)
        return int(self.id_rows[at]) if at < len(self.ids) and self.ids[at] == document_id else None


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Vectors that come in parts, each float32 [n, dimensions], so that they need not be in memory together."""

    shape: tuple[int, int]
    parts: Iterable[NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a generation is made of: documents in their order, and in the same order `passages` and `vectors`."""

    embedder: EmbedderRecord
    documents: Iterable[DocumentRecord]
    passages: NDArray[np.int32]
    vectors: NDArray[np.float32] | Parts


@dataclass(frozen=True, slots=True)
class Origin:
    """What a generation is to be called, and what makes it."""

    collection: str
    number: int
    reason: str
    created: datetime = field(default_factory=lambda: datetime.now(UTC))


def write_generation(
    folder: Path, origin: Origin, content: Content, indexer: Indexer, before: Generation | None = None
) -> None:
    """Fill the empty `folder`; return when everything is on disk. `before` is what the content was made from."""
    writer = Writer(folder)
    vectors = content.vectors
    parts = [vectors] if isinstance(vectors, np.ndarray) else vectors.parts
    writer.array(VECTORS, (len(content.passages), vectors.shape[1]), np.float32, parts)
    writer.vector("passages.npy", content.passages)
    ids: list[str] = []
    terms = MetadataIndexWriter()

    def lines() -> Iterable[str]:
        for document in in_turns(content.documents):
            ids.append(document.id)
            terms.add(document.metadata)
            yield json.dumps(asdict(document), ensure_ascii=False, separators=(",", ":"))

    writer.strings("documents", lines())
    order = sorted_in_turns(ids)
    writer.strings("ids", in_turns(ids[row] for row in order))
    writer.vector("ids.rows.npy", np.array(order, np.int32))
    terms.write(writer)
    with writer.create(INDEX) as file:
        index = indexer(read_array(folder / VECTORS), file, before)
    if index is None:
        (folder / INDEX).unlink()
        del writer.entries[INDEX]
    manifest = {
        "format": FORMAT,
        "collection": origin.collection,
        "generation": origin.number,
        "created": origin.created.isoformat(),
        "origin": origin.reason,
        "embedder": asdict(content.embedder),
        "dimensions": vectors.shape[1],
        "documents": len(ids),
        "passages": len(content.passages),
        "index": index,
        "files": writer.entries,
    }
    write_manifest(folder, manifest)


def no_index(vectors: NDArray[np.float32], file: HashedFile, before: Generation | None) -> None:
    """An `Indexer` for collections that are small."""
    return


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """The last file of a generation."""
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The manifest of a generation. Raises OSError, ValueError, KeyError or TypeError if it is not one."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if manifest.get("format") != FORMAT:
        raise ValueError("it was written in another format")
    if (manifest["collection"], manifest["generation"]) != (name, int(folder.name)):
        raise ValueError("the manifest is that of another generation")
    return manifest


def read_generation(folder: Path, name: str, *, check: bool = True) -> Generation:
    """Open a generation; `check` compares every file with the manifest.

    Raises OSError, ValueError, KeyError or TypeError if it is not whole.
    """
    manifest = read_manifest(folder, name)
    if check:
        check_files(folder, manifest["files"])
    vectors, passages = read_array(folder / VECTORS), read_array(folder / "passages.npy")
    documents, ids, id_rows = (
        read_strings(folder, "documents"),
        read_strings(folder, "ids"),
        read_array(folder / "ids.rows.npy"),
    )
    if vectors.shape != (manifest["passages"], manifest["dimensions"]) or passages.shape != (len(vectors), 3):
        raise ValueError("vectors and passages do not fit the manifest")
    if not len(documents) == len(ids) == len(id_rows) == manifest["documents"]:
        raise ValueError("documents and ids do not fit the manifest")
    counts = np.bincount(passages[:, 0], minlength=len(documents))
    return Generation(
        folder=folder,
        number=manifest["generation"],
        created=datetime.fromisoformat(manifest["created"]),
        origin=manifest["origin"],
        embedder=EmbedderRecord(**manifest["embedder"]),
        size_bytes=sum(entry["bytes"] for entry in manifest["files"].values()),
        vectors=vectors,
        passages=passages,
        first=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        documents=documents,
        ids=ids,
        id_rows=id_rows,
        terms=read_metadata_index(folder),
        index=manifest["index"],
    )
