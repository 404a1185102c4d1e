"""Small collections whose documents are known by their texts."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document
from server.vectorstore.admin import create_collection
from server.vectorstore.collection import Collection
from server.vectorstore.segment import Content

EMBEDDER = ModelIdentity("embedder", "1", "sha256:0")


def documents(*texts: str) -> tuple[Document, ...]:
    """Documents whose ids are their texts."""
    return tuple(Document(text, text, metadata={"n": str(len(text))}) for text in texts)


def parts(*texts: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """One passage a text; vectors of 3 dimensions that tell the texts apart."""
    passages = np.array([(i, 0, len(text)) for i, text in enumerate(texts)], np.int32).reshape(-1, 3)
    return passages, np.array([(len(text), 1, 0) for text in texts], np.float32).reshape(-1, 3)


def content(*texts: str) -> Content:
    passages, vectors = parts(*texts)
    return Content(EMBEDDER, 3, documents(*texts), passages, [vectors])


def made(index: Path, *texts: str) -> Collection:
    """A new collection."""
    return create_collection(index, "notes", content(*texts))


def add(collection: Collection, *texts: str) -> int:
    return collection.commit((), documents(*texts), *parts(*texts)).generation


def opened(index: Path) -> Collection:
    return Collection(index / "notes")


def texts_of(collection: Collection) -> list[str]:
    """Texts in their order, after checking that passages and vectors are theirs."""
    everything = collection.snapshot.content()
    texts = [document.text for document in everything.documents]
    expected = parts(*texts)
    assert np.array_equal(everything.passages, expected[0])
    assert np.array_equal(np.concatenate([expected[1][:0], *everything.vectors]), expected[1])
    assert (collection.snapshot.document_count, collection.snapshot.passage_count) == (len(texts), len(texts))
    return texts
