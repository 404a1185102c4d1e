"""What classifiers and embedders of text share, whatever computes them: work spread over lanes, softmax, checks.

Constructing an engine reads its weights and runs one inference, so an engine that exists is warm. That blocks for
seconds: construct it on a thread. It holds for every engine in this package that runs a model from an artefact.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engines.interfaces import Classification, Label, ModelDescription
from server.errors import ModelUnavailable
from server.runtime.lanes import Lanes

R = TypeVar("R")
_PROBE = ("Is this model ready to answer?",)


class Outputs(NamedTuple):
    """What a model makes of some texts: float32 [texts, width], and whether each text's end was left unread."""

    values: NDArray[np.float32]
    truncated: list[bool]


class Forward(Protocol):
    """Runs a model on the calling thread. `at_once` is how many texts are worth one call."""

    at_once: int

    def __call__(self, texts: Sequence[str]) -> Outputs:
        """Logits or vectors of one text at least."""
        ...


class TextClassifier:
    """A Classifier: softmax over the logits of any model."""

    def __init__(self, forward: Forward, description: ModelDescription, lanes: Lanes) -> None:
        self.description = description
        self._forward = forward
        self._lanes = lanes
        _check_shape(forward, len(description.labels), description)

    async def classify(self, texts: Sequence[str], *, deadline: float) -> list[Classification]:
        """One result a text, in order. Scores of a text add up to 1."""
        return await _spread(self._classify, texts, self._forward.at_once, self._lanes, deadline)

    def _classify(self, texts: Sequence[str]) -> list[Classification]:
        logits, truncated = self._forward(texts)
        return [
            Classification(_ranked(self.description.labels, scores), cut)
            for scores, cut in zip(softmax(logits).tolist(), truncated, strict=True)
        ]


class TextEmbedder:
    """An Embedder: any model whose vectors have length 1."""

    def __init__(self, forward: Forward, description: ModelDescription, dimensions: int, lanes: Lanes) -> None:
        self.description = description
        self._dimensions = dimensions
        self._forward = forward
        self._lanes = lanes
        _check_shape(forward, dimensions, description)

    async def embed(self, texts: Sequence[str], *, deadline: float) -> NDArray[np.float32]:
        """float32 [texts, dimensions] in their order; every row has length 1."""
        rows = await _spread(self._embed, texts, self._forward.at_once, self._lanes, deadline)
        return np.array(rows, np.float32).reshape(len(texts), self._dimensions)

    def _embed(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return list(self._forward(texts).values)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of each row, in double precision so that they add up to 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _ranked(names: Sequence[str], scores: Sequence[float]) -> tuple[Label, ...]:
    labels = (Label(name, score) for name, score in zip(names, scores, strict=True))
    return tuple(sorted(labels, key=lambda label: label.score, reverse=True))


def _check_shape(forward: Forward, width: int, description: ModelDescription) -> None:
    values = forward(_PROBE).values
    if values.shape != (len(_PROBE), width) or not np.isfinite(values).all():
        raise ModelUnavailable(
            f'model "{description.identity.name}" gives {values.shape[-1]} numbers for a text instead of {width}, '
            "or some that are not finite",
            metadata={"model": description.identity.name},
        )


async def _spread(
    work: Callable[[Sequence[str]], Sequence[R]], texts: Sequence[str], at_once: int, lanes: Lanes, deadline: float
) -> list[R]:
    """Apply `work` to all texts, in groups of like length on all lanes, the longest first; keep their order."""
    size = max(1, min(at_once, -(-len(texts) // lanes.count)))
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    groups = [order[begin : begin + size] for begin in range(0, len(order), size)]
    parts = await lanes.run_all(
        [partial(work, [texts[index] for index in group]) for group in groups], deadline=deadline
    )
    found: dict[int, R] = {}
    for group, part in zip(groups, parts, strict=True):
        found.update(zip(group, part, strict=True))
    return [found[index] for index in range(len(texts))]
