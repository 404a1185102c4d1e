"""A segment: the immutable files of one generation, memory-mapped, so that opening them reads few bytes.

manifest.json                  what it is, and the files with their SHA-256
vectors.npy                    float32 [passages, dimensions], rows of length 1
passages.npy                   int32 [passages, 3]: row of the document, first code point, the one after the last
documents.utf8, .ends.npy      a Document each as JSON
ids.utf8, .ends.npy, .rows.npy the sorted ids, with the rows of their documents
terms.*, postings.*            the metadata (metadata_index.py)
vectors.index                  of large collections: the approximate index (ann_index.py)
"""

import json
import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionBroken, CollectionTooNew
from server.domain.models import ModelIdentity
from server.domain.rag import Document, GenerationInfo
from server.models.artefact import check_file
from server.vectorstore import ann_index
from server.vectorstore.ann_index import AnnIndex, open_index
from server.vectorstore.damage import Damaged, damage_as_error
from server.vectorstore.documents import document_of, fields_of
from server.vectorstore.files import Strings, Writer, read_array, read_strings, sorted_positions, with_pauses
from server.vectorstore.layout import FORMAT, committed_generations, read_pointer, segment_folder
from server.vectorstore.manifest import Manifest, read_manifest, write_manifest
from server.vectorstore.metadata_index import MetadataIndex, MetadataIndexWriter, read_metadata_index

logger = logging.getLogger(__name__)
T = TypeVar("T")
VECTORS, PASSAGES, INDEX = "vectors.npy", "passages.npy", "vectors.index"


@dataclass(frozen=True, eq=False)
class Segment:
    """An opened segment. `passage_starts` int64 [documents + 1]: rows of passages at which documents begin.

    `unreadable`: rows of documents that could not be read although their file is the one that was written.
    """

    collection: str
    info: GenerationInfo
    vectors: NDArray[np.float32]
    passages: NDArray[np.int32]
    passage_starts: NDArray[np.int64]
    documents: Strings
    ids: Strings
    id_rows: NDArray[np.int32]
    metadata: MetadataIndex
    ann: AnnIndex | None
    unreadable: set[int] = field(default_factory=set)

    def document(self, row: int) -> Document:
        """Raises CollectionBroken if it cannot be read."""
        try:
            with damage_as_error():
                return document_of(json.loads(self.documents[row]))
        except Damaged as error:
            self.unreadable.add(row)
            what = f"document {row} of generation {self.info.generation} cannot be read: {error}"
            raise CollectionBroken(f'collection "{self.collection}": {what}') from error

    def row_of(self, document_id: str) -> int | None:
        """The row of a document, None if it is not here."""
        at = bisect_left(self.ids, document_id)
        return int(self.id_rows[at]) if at < len(self.ids) and self.ids[at] == document_id else None


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a segment is written from: documents in their order, and in the same order `passages` and `vectors`.

    Vectors come in parts, each float32 [n, dimensions], so that they need not be in memory together.
    """

    embedder: ModelIdentity
    dimensions: int
    documents: Iterable[Document] = ()
    passages: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 3), np.int32))
    vectors: Iterable[NDArray[np.float32]] = ()


def write_segment(
    folder: Path, collection: str, generation: int, content: Content, *, origin: str, before: AnnIndex | None = None
) -> None:
    """Fill the empty `folder`; return when everything is synced. `origin` is what made it, for instance "fold".

    `before` is the approximate index of the segment that the content was made from.
    """
    writer = Writer(folder)
    writer.rows(VECTORS, (len(content.passages), content.dimensions), np.float32, content.vectors)
    writer.array(PASSAGES, content.passages)
    ids: list[str] = []
    metadata = MetadataIndexWriter()

    def lines() -> Iterator[str]:
        for document in with_pauses(content.documents):
            ids.append(document.id)
            metadata.add(document.metadata)
            yield json.dumps(fields_of(document), ensure_ascii=False, separators=(",", ":"))

    writer.strings("documents", lines())
    order = sorted_positions(ids)
    writer.strings("ids", with_pauses(ids[row] for row in order))
    writer.array("ids.rows.npy", np.array(order, np.int32))
    metadata.write(writer)
    index = None
    if len(content.passages) >= ann_index.FLAT_LIMIT:
        with writer.create(INDEX) as file:
            index = ann_index.build_index(read_array(folder / VECTORS), file, before)
    manifest = {
        "format": FORMAT,
        "collection": collection,
        "generation": generation,
        "created": datetime.now(UTC).isoformat(),
        "origin": origin,
        "embedder": asdict(content.embedder),
        "dimensions": content.dimensions,
        "documents": len(ids),
        "passages": len(content.passages),
        "index": index,
        "files": {name: asdict(entry) for name, entry in writer.entries.items()},
    }
    write_manifest(folder, manifest)


def read_segment(folder: Path, collection: str, *, check: bool = True) -> Segment:
    """Open a segment; `check` compares every file with the manifest. Raises what read_manifest raises."""
    manifest = read_manifest(folder, collection)
    with damage_as_error():
        if check:
            for name, entry in manifest.files.items():
                check_file(folder, name, entry)
        return _opened(folder, collection, manifest)


def _opened(folder: Path, collection: str, manifest: Manifest) -> Segment:
    info = manifest.info
    vectors, passages = read_array(folder / VECTORS), read_array(folder / PASSAGES)
    documents, ids = read_strings(folder, "documents"), read_strings(folder, "ids")
    id_rows = read_array(folder / "ids.rows.npy")
    if vectors.shape != (info.passage_count, manifest.dimensions) or passages.shape != (len(vectors), 3):
        raise ValueError("vectors and passages do not fit the manifest")
    if not len(documents) == len(ids) == len(id_rows) == info.document_count:
        raise ValueError("documents and ids do not fit the manifest")
    if [each.dtype.str for each in (vectors, passages, id_rows)] != ["<f4", "<i4", "<i4"]:
        raise ValueError("an array has another type")
    counts = np.bincount(passages[:, 0], minlength=len(documents))
    if len(counts) > len(documents) or (len(ids) and not 0 <= id_rows.min() <= id_rows.max() < len(ids)):
        raise ValueError("passages or ids do not fit the documents")
    ann = None
    if manifest.index is not None:
        ann = open_index(folder / INDEX, manifest.index, vectors.shape)
    return Segment(
        collection=collection,
        info=info,
        vectors=vectors,
        passages=passages,
        passage_starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        documents=documents,
        ids=ids,
        id_rows=id_rows,
        metadata=read_metadata_index(folder, len(documents)),
        ann=ann,
    )


def kept_generations(folder: Path) -> list[GenerationInfo]:
    """The generations of a collection that have a segment, newest first, without those whose manifest is damaged."""
    found: list[GenerationInfo] = []
    for generation in committed_generations(folder, read_pointer(folder)):
        try:
            found.append(read_manifest(segment_folder(folder, generation), folder.name).info)
        except (Damaged, CollectionTooNew) as error:
            # It may be gone, because a fold has just removed it.
            logger.info('collection "%s": generation %d is not listed: %s', folder.name, generation, error)
    return found
