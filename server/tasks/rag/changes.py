"""What a write has to change: documents are compared with those in the collection, and new texts are split. Blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import Document, embedded_text
from server.tasks.rag.splitter import split

Passages = NDArray[np.int32]
Vectors = NDArray[np.float32]
# A document with its passages and their vectors, None if it is not in the collection.
Find = Callable[[str], tuple[Document, Passages, Vectors] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Documents that differ from those in the collection, their passages, and the `texts` to embed for them.

    `known`: for each document its vectors, or None if they have to be made. Whole texts are compared: as fast as
    comparing digests, and never wrong.
    """

    documents: tuple[Document, ...]
    updated: int
    passages: Passages
    known: tuple[Vectors | None, ...]
    texts: list[str]

    def vectors(self, embedded: Vectors) -> Vectors:
        """Known and new vectors in the order of the passages; `embedded` are those of `texts`."""
        counts = np.bincount(self.passages[:, 0], minlength=len(self.documents)).tolist()
        parts: list[Vectors] = []
        taken = 0
        for vectors, count in zip(self.known, counts, strict=True):
            parts.append(embedded[taken : taken + count] if vectors is None else vectors)
            taken += count if vectors is None else 0
        return np.concatenate([embedded[:0], *parts])


def compare(find: Find, documents: Sequence[Document]) -> Changes:
    """The changes after which `documents` are in the collection."""
    changed: list[Document] = []
    rows: list[tuple[int, int, int]] = []
    known: list[Vectors | None] = []
    texts: list[str] = []
    updated = 0
    for document in documents:
        found = find(document.id)
        if found and found[0] == document:
            continue
        updated += found is not None
        if found and (found[0].text, found[0].title) == (document.text, document.title):
            rows += ((len(changed), start, end) for _, start, end in found[1].tolist())
            known.append(found[2])
        else:
            passages = split(document.text)
            rows += ((len(changed), start, end) for start, end in passages)
            known.append(None)
            texts += (embedded_text(document.title, document.text[start:end]) for start, end in passages)
        changed.append(document)
    return Changes(tuple(changed), updated, np.array(rows, np.int32).reshape(-1, 3), tuple(known), texts)
