"""A small deterministic embedder, and documents for it."""

import asyncio
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelDescription, ModelIdentity, ModelTask
from server.domain.rag import Document

DIMENSIONS = 1024
CAT = Document("cat", "The cat sleeps on the warm mat.", "Cat", "file:cat", {"kind": "animal"})
DOG = Document("dog", "A dog chases the red ball.")
SUN = Document("sun", "The sun is a star made of hot plasma.")


def hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of length 1: each word counts in the dimension that its checksum names."""
    vectors = np.full((len(texts), DIMENSIONS), 1e-3, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            vectors[row, zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


class HashingEmbedder:
    """An embedder that knows words and no meanings. It waits while `gate` is clear."""

    def __init__(self, version: str = "1") -> None:
        identity = ModelIdentity("hashing", version, f"sha256:{version}")
        self.description = ModelDescription(identity, ModelTask.EMBEDDING, "numpy")
        self.gate = asyncio.Event()
        self.gate.set()
        self.embedded: list[str] = []

    async def embed(self, texts: Sequence[str], *, deadline: float) -> NDArray[np.float32]:
        self.embedded += texts
        if len(texts) > 1 or not texts[0].startswith("?"):  # queries pass
            await self.gate.wait()
        return hashed(texts)
