"""Writing a segment, in parts that need not be in memory together. segment.py says what is in its files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document
from server.models.artefact import MANIFEST, write_durably
from server.vectorstore import ann_index
from server.vectorstore.ann_index import AnnIndex
from server.vectorstore.files import Writer, read_array, sorted_positions, with_pauses
from server.vectorstore.layout import FORMAT
from server.vectorstore.metadata_index import MetadataIndexWriter
from server.vectorstore.segment import INDEX, PASSAGES, VECTORS


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
            yield json.dumps(asdict(document), ensure_ascii=False, separators=(",", ":"))

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


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the last file of a segment."""
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
