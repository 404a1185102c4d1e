"""A cross-encoder, which reads a query and a passage together."""

from collections.abc import Sequence
from functools import partial

from server.domain.models import ModelTask
from server.domain.rag import embedded_text
from server.inference.computation import Computation
from server.inference.onnx_text import OnnxForward
from server.inference.scheduler import Scheduler
from server.inference.text import text_cost
from server.models.artefact import Artefact

OUTPUT = "logits"


def pairs(query: str, passages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the model reads for passages given as (title, text)."""
    return [(query, embedded_text(title, text)) for title, text in passages]


class OnnxReranker:
    """Scores a query and a passage together, which tells better than a cosine whether one answers the other.

    Constructing it blocks and runs an inference, as for TextClassifier.
    """

    def __init__(self, artefact: Artefact, scheduler: Scheduler) -> None:
        engine = str(artefact.schema("engine"))
        forward = OnnxForward(artefact, engine, OUTPUT)
        self.description = artefact.describe(ModelTask.RERANKING, engine, max_input_tokens=forward.max_tokens)
        self._scheduler = scheduler
        name = self.description.identity.name
        compute = partial(_score, forward)  # refers to no engine, for the reason in text.py
        self._computation = Computation(
            name, compute, scheduler.counters[name], lambda read: text_cost(sum(map(len, read))), forward.batch_policy
        )
        _score(forward, pairs("Is this model ready?", [("", "It is.")]))

    async def scores(self, query: str, passages: Sequence[tuple[str, str]], *, deadline: float) -> list[float]:
        """How well each passage, a (title, text), answers the query; larger is better, and the scale is the model's."""
        return await self._scheduler.map(self._computation, pairs(query, passages), deadline=deadline)


def _score(forward: OnnxForward, read: Sequence[tuple[str, str]]) -> list[float]:
    return [float(score) for score in forward(read).values[:, 0]]
