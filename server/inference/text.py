"""What classifiers and embedders of text share, whatever computes them: work spread over lanes, softmax, checks.

Constructing an engine reads its weights and runs one inference, so an engine that exists is warm. That blocks for
seconds: construct it on a thread. It holds for every engine in this package that runs a model from an artefact.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription
from server.domain.texts import Classification, Label
from server.inference.queue import BatchPolicy, Work
from server.inference.result_cache import ResultCache
from server.inference.scheduler import Scheduler

_LABEL_BYTES = 160  # of a label with its score and their places
_CHARACTERS_A_TOKEN = 5
_SPECIAL = 2 * _CHARACTERS_A_TOKEN  # the tokens that mark the ends of a text
_PROBE = ("Is this model ready to answer?",)


class Outputs(NamedTuple):
    """What a model makes of some texts: float32 [texts, width], and whether each text's end was left unread."""

    values: NDArray[np.float32]
    truncated: list[bool]


class Forward(Protocol):
    """Runs a model on the calling thread. `gathering` is how far running texts together helps; see text_cost()."""

    gathering: BatchPolicy

    def __call__(self, texts: Sequence[str]) -> Outputs:
        """Logits or vectors of one text at least."""
        ...


class TextClassifier:
    """A Classifier: softmax over the logits of any model. `cache_bytes` of results are kept for texts that recur."""

    def __init__(
        self, forward: Forward, description: ModelDescription, lanes: Scheduler, *, cache_bytes: int = 0
    ) -> None:
        self.description = description
        self._lanes = lanes
        self._work = _work(partial(_classify, forward, description.labels), forward, description, lanes)
        size = _LABEL_BYTES * len(description.labels)
        self._cache: ResultCache[Classification] = ResultCache(cache_bytes, lambda _: size, self._work.counters)
        _check_shape(forward, len(description.labels), description)

    async def classify(self, texts: Sequence[str], *, deadline: float) -> list[Classification]:
        """One result a text, in order. Scores of a text add up to 1."""
        return [*await self._cache.through(texts, partial(self._lanes.map, self._work, deadline=deadline))]


class TextEmbedder:
    """An Embedder: any model whose vectors have length 1. `cache_bytes` of vectors are kept for texts that recur."""

    def __init__(
        self,
        forward: Forward,
        description: ModelDescription,
        dimensions: int,
        lanes: Scheduler,
        *,
        cache_bytes: int = 0,
    ) -> None:
        self.description = description
        self._dimensions = dimensions
        self._lanes = lanes
        self._work = _work(partial(_embed, forward), forward, description, lanes)
        self._cache: ResultCache[NDArray[np.float32]] = ResultCache(
            cache_bytes, lambda vector: vector.nbytes, self._work.counters
        )
        _check_shape(forward, dimensions, description)

    async def embed(self, texts: Sequence[str], *, deadline: float) -> NDArray[np.float32]:
        """float32 [texts, dimensions] in their order; every row has length 1."""
        rows = await self._cache.through(texts, partial(self._lanes.map, self._work, deadline=deadline))
        return np.array(rows, np.float32).reshape(len(texts), self._dimensions)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of each row, in double precision so that they add up to 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


# What lanes compute holds the model and not its engine: an engine without a cycle of references is gone at once.


def _classify(forward: Forward, labels: Sequence[str], texts: Sequence[str]) -> list[Classification]:
    logits, truncated = forward(texts)
    return [
        Classification(_ranked(labels, scores), cut)
        for scores, cut in zip(softmax(logits).tolist(), truncated, strict=True)
    ]


def _embed(forward: Forward, texts: Sequence[str]) -> list[NDArray[np.float32]]:
    return [row.copy() for row in forward(texts).values]  # a view would keep its whole batch


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


def text_cost(characters: int, max_tokens: int = 0) -> int:
    """What a text costs a model that reads `max_tokens`, in characters: the rest of it is not read."""
    return _SPECIAL + (min(characters, _CHARACTERS_A_TOKEN * max_tokens) if max_tokens else characters)


def _work(
    compute: Callable[[Sequence[str]], Sequence[object]],
    forward: Forward,
    description: ModelDescription,
    lanes: Scheduler,
) -> Work:
    def cost(text: str) -> int:
        return text_cost(len(text), description.max_input_tokens)

    return lanes.work(description.identity.name, compute, cost=cost, gathering=forward.gathering)
