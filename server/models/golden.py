"""Golden inputs: a few inputs with the artefact's outputs when it was made, to check an engine before it serves.

    golden.json            {"inputs": [...], "outputs": {ENGINE: [{NAME: NUMBER, ...}, ...]}}
    manifest.json          schema.golden.tolerance: {ENGINE: NUMBER}

An output is a map of numbers: scores by label, a vector's components, the logarithm of a price (so that a difference
is relative). The difference of two outputs is the largest of their numbers; a missing number counts as 0.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from server.domain.analysis import ParsedText
from server.domain.errors import ServerOverloaded
from server.domain.models import ModelTask
from server.domain.pricing import House
from server.domain.texts import Label
from server.models.artefact import Artefact

GOLDEN = "golden.json"
_SECONDS = 60.0
Answer = dict[str, float]


async def difference(engine: Any, artefact: Artefact) -> str:
    """Which output differs by more than the tolerance, in a sentence; "" if none does."""
    if GOLDEN not in artefact.manifest.files:
        return ""
    golden = json.loads(await asyncio.to_thread((artefact.path / GOLDEN).read_bytes))
    kind = engine.description.engine
    expected = golden["outputs"].get(kind, [])
    tolerance = artefact.manifest.schema["golden"]["tolerance"].get(kind, 0.0)
    for number, (asked, wanted) in enumerate(zip(golden["inputs"], expected, strict=False)):
        worst = distance(await ask(engine, asked), wanted)
        if not worst <= tolerance:  # nan, too
            off = f"{worst:.3g} off, {tolerance:g} is allowed"
            return f"golden input {number} of version {artefact.manifest.version} gives another output: {off}"
    return ""


async def ask(engine: Any, asked: Any) -> Answer:
    """The engine's output for one golden input. It waits while the scheduler's queue is full."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return await _ASK[engine.description.task](engine, asked, deadline)
        except ServerOverloaded as full:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(full.retry_after)


def distance(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    """The largest difference of two numbers of the same name."""
    return max((abs(left.get(name, 0.0) - right.get(name, 0.0)) for name in {*left, *right}), default=0.0)


async def _classify(engine: Any, text: str, deadline: float) -> Answer:
    (found,) = await engine.classify([text], deadline=deadline)
    return _scores(found.labels)


async def _embed(engine: Any, text: str, deadline: float) -> Answer:
    vectors = await engine.embed([text], deadline=deadline)
    return {str(index): value for index, value in enumerate(vectors[0].tolist())}


async def _price(engine: Any, house: Mapping[str, Any], deadline: float) -> Answer:
    (found,) = await engine.predict([House(**house)], deadline=deadline)
    return {"price": math.log(found.price_usd), "low": math.log(found.low_usd), "high": math.log(found.high_usd)}


async def _identify(engine: Any, text: str, deadline: float) -> Answer:
    return _scores(await engine.identify(text, deadline=deadline))


async def _parse(engine: Any, text: str, deadline: float) -> Answer:
    parsed: ParsedText = await engine.parse(text, deadline=deadline)
    tokens = {f"{token.start} {token.lemma} {token.pos} {token.dependency} {token.head}" for token in parsed.tokens}
    return dict.fromkeys(tokens | {f"{entity.start} {entity.type}" for entity in parsed.entities}, 1.0)


def _scores(labels: tuple[Label, ...]) -> Answer:
    return {label.name: label.score for label in labels}


_ASK: dict[ModelTask, Callable[[Any, Any, float], Awaitable[Answer]]] = {
    ModelTask.CLASSIFICATION: _classify,
    ModelTask.EMBEDDING: _embed,
    ModelTask.REGRESSION: _price,
    ModelTask.LANGUAGE_ID: _identify,
    ModelTask.LINGUISTICS: _parse,
}
