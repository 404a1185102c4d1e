"""What a write has to change: documents are compared with what is there, and cut only if their text is new. Blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import embedded_text
from server.tasks.rag.splitter import split
from server.vectorstore.segment import DocumentRecord

Passages = NDArray[np.int32]
Vectors = NDArray[np.float32]
# A document with its passages and their vectors, None if it is not there.
Find = Callable[[str], tuple[DocumentRecord, Passages, Vectors] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Documents that differ from what is there, their passages, and the `texts` that have to be embedded for them.

    `known`: for each document its vectors, or None if they are to be made. Comparing with the text itself is as quick
    as comparing digests would be, and never wrong.
    """

    documents: tuple[DocumentRecord, ...]
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


def compare(find: Find, documents: Sequence[DocumentRecord]) -> Changes:
    """What has to be written so that `documents` are there."""
    changed: list[DocumentRecord] = []
    spans: list[list[tuple[int, int]]] = []
    known: list[Vectors | None] = []
    texts: list[str] = []
    updated = 0
    for document in documents:
        found = find(document.id)
        if found and found[0] == document:
            continue
        updated += found is not None
        changed.append(document)
        if found and (found[0].text, found[0].title) == (document.text, document.title):
            spans.append([(start, end) for _, start, end in found[1].tolist()])
            known.append(found[2])
        else:
            spans.append(split(document.text))
            known.append(None)
            texts += (embedded_text(document.title, document.text[start:end]) for start, end in spans[-1])
    rows = [(owner, *span) for owner, each in enumerate(spans) for span in each]
    passages = np.array(rows, np.int32).reshape(-1, 3)
    return Changes(tuple(changed), updated, passages, tuple(known), texts)
