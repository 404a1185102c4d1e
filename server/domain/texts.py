"""Classifying and embedding texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.domain.models import ModelDescription

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Label:
    """A class with its probability in 0..1."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """All labels of one text, most probable first.

    `truncated` if the text's end was not read; `unknown_share` of its tokens, 0..1, are none of the model's vocabulary.
    """

    labels: tuple[Label, ...]
    truncated: bool
    unknown_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one text, float32 [dimensions], of length 1. The other fields as in Classification."""

    vector: "NDArray[np.float32]"
    truncated: bool
    unknown_share: float


class Classifier(Protocol):
    """Puts texts into classes."""

    description: ModelDescription

    async def classify(self, texts: Sequence[str], *, deadline: float) -> list[Classification]:
        """One result a text, in order. Scores of a text add up to 1."""


class Embedder(Protocol):
    """Turns texts into vectors whose cosine tells how near their meanings are."""

    description: ModelDescription

    async def embed(self, texts: Sequence[str], *, deadline: float) -> "NDArray[np.float32]":
        """float32 [texts, dimensions] in their order; every row has length 1."""


class DetailedEmbedder(Embedder, Protocol):
    """An Embedder that also tells how much of a text its model reads and knows."""

    async def embed_detailed(self, texts: Sequence[str], *, deadline: float) -> list[Embedding]:
        """One a text, in order."""
