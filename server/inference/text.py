"""Classifiers and embedders of text, on any model: computing on the scheduler's lanes, softmax, caching, checks.

Constructing one runs an inference, so that it is warm when it exists. Reading a model and constructing an engine block
for seconds: do both on a thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import ModelUnavailable
from server.domain.models import ModelDescription, ModelTask
from server.domain.texts import Classification, Embedding, Label
from server.inference.computation import BatchPolicy, Computation
from server.inference.result_cache import ResultCache
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact

_LABEL_BYTES = 160  # of a label with its score in memory
_CHARACTERS_A_TOKEN = 5
_SPECIAL = 2 * _CHARACTERS_A_TOKEN  # the tokens that mark the ends of a text
_PROBE = ("Is this model ready to answer?",)


class Outputs(NamedTuple):
    """What a model makes of some texts: float32 [texts, width], whether each text's end was not read, and which share
    of the tokens that were read is unknown to the model.
    """

    values: NDArray[np.float32]
    truncated: list[bool]
    unknown_shares: list[float]


@dataclass(frozen=True)
class TextModel:
    """A model in memory. `forward` runs on the calling thread and gives `width` logits or vector elements a text.

    Costs of `batch_policy` are those of text_cost().
    """

    description: ModelDescription
    forward: Callable[[Sequence[str]], Outputs]
    width: int
    batch_policy: BatchPolicy


def describe_text_model(
    artefact: Artefact, task: ModelTask, engine: str, max_tokens: int
) -> tuple[ModelDescription, int]:
    """The description and the width of a classifier's or an embedder's model."""
    labels = tuple(artefact.schema("labels")) if task is ModelTask.CLASSIFICATION else ()
    width = len(labels) if task is ModelTask.CLASSIFICATION else artefact.schema("dimensions")
    return artefact.describe(task, engine, labels=labels, max_input_tokens=max_tokens), width


class TextClassifier:
    """A Classifier: softmax over logits. Up to `cache_bytes` of results are kept for texts that recur."""

    def __init__(self, model: TextModel, scheduler: Scheduler, *, cache_bytes: int = 0) -> None:
        self.description = model.description
        self._scheduler = scheduler
        self._computation = _computation(model, partial(_classify, model), scheduler)
        size = _LABEL_BYTES * model.width
        self._cache: ResultCache[Classification] = ResultCache(cache_bytes, lambda _: size, self._computation.counters)

    async def classify(self, texts: Sequence[str], *, deadline: float) -> list[Classification]:
        compute = partial(self._scheduler.map, self._computation, deadline=deadline)
        return [*await self._cache.through(texts, compute)]


class TextEmbedder:
    """A DetailedEmbedder, of a model whose vectors have length 1. `cache_bytes` as above."""

    def __init__(self, model: TextModel, scheduler: Scheduler, *, cache_bytes: int = 0) -> None:
        self.description = model.description
        self._dimensions = model.width
        self._scheduler = scheduler
        self._computation = _computation(model, partial(_embed, model), scheduler)
        self._cache: ResultCache[Embedding] = ResultCache(
            cache_bytes, lambda found: found.vector.nbytes, self._computation.counters
        )

    async def embed(self, texts: Sequence[str], *, deadline: float) -> NDArray[np.float32]:
        rows = [found.vector for found in await self.embed_detailed(texts, deadline=deadline)]
        return np.array(rows, np.float32).reshape(len(texts), self._dimensions)

    async def embed_detailed(self, texts: Sequence[str], *, deadline: float) -> list[Embedding]:
        compute = partial(self._scheduler.map, self._computation, deadline=deadline)
        return [*await self._cache.through(texts, compute)]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of each row, in double precision so that they add up to 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def unknown_share(ids: list[int], unknown: int | None, special: int) -> float:
    """The share of a text's tokens that are `unknown`. `special` tokens mark its ends. 1 if no token was read."""
    tokens = len(ids) - special
    if tokens <= 0:
        return 1.0
    return ids.count(unknown) / tokens if unknown is not None else 0.0


def text_cost(characters: int, max_tokens: int = 0) -> int:
    """The cost of a text for a model that reads `max_tokens`, in characters: the rest of it is not read."""
    return _SPECIAL + (min(characters, _CHARACTERS_A_TOKEN * max_tokens) if max_tokens else characters)


def _computation(
    model: TextModel, compute: Callable[[Sequence[str]], Sequence[object]], scheduler: Scheduler
) -> Computation:
    """Check the model and make its computation.

    `compute` must not refer to the engine: a cycle of references would keep a dropped engine in memory.
    """
    description, values = model.description, model.forward(_PROBE).values
    if values.shape != (1, model.width) or not np.isfinite(values).all():
        raise ModelUnavailable(
            f'model "{description.identity.name}" gives {values.shape[-1]} numbers for a text instead of '
            f"{model.width}, or some that are not finite",
            metadata={"model": description.identity.name},
        )
    max_tokens = description.max_input_tokens
    name = description.identity.name
    return Computation(
        name, compute, scheduler.counters[name], lambda text: text_cost(len(text), max_tokens), model.batch_policy
    )


def _classify(model: TextModel, texts: Sequence[str]) -> list[Classification]:
    logits, truncated, unknown_shares = model.forward(texts)
    return [
        Classification(_ranked(model.description.labels, scores), cut, share)
        for scores, cut, share in zip(softmax(logits).tolist(), truncated, unknown_shares, strict=True)
    ]


def _ranked(names: Sequence[str], scores: Sequence[float]) -> tuple[Label, ...]:
    labels = (Label(name, score) for name, score in zip(names, scores, strict=True))
    return tuple(sorted(labels, key=lambda label: label.score, reverse=True))


def _embed(model: TextModel, texts: Sequence[str]) -> list[Embedding]:
    # A view of a row would keep its whole batch.
    return [Embedding(row.copy(), cut, share) for row, cut, share in zip(*model.forward(texts), strict=True)]
