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
from collections.abc import Mapping
from typing import Any

from server.domain.analysis import ParsedText
from server.domain.errors import ServerOverloaded
from server.domain.models import ModelTask
from server.domain.pricing import House
from server.domain.threads import on_thread
from server.models.artefact import Artefact, unusable

GOLDEN = "golden.json"
_SECONDS = 60.0
Answer = dict[str, float]


async def difference(engine: Any, artefact: Artefact) -> str:
    """Which output differs by more than the tolerance, in a sentence; "" if none does. Raises ModelUnavailable."""
    if GOLDEN not in artefact.manifest.files:
        return ""
    try:
        return await _difference(engine, artefact)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, NotImplementedError) as error:
        why = f"its {GOLDEN} cannot be replayed ({type(error).__name__})"
        raise unusable(artefact.manifest.name, why) from error


async def _difference(engine: Any, artefact: Artefact) -> str:
    golden = json.loads(await on_thread("golden", (artefact.path / GOLDEN).read_bytes))
    kind = engine.description.engine
    expected = golden["outputs"].get(kind, [])
    tolerance = artefact.manifest.schema["golden"]["tolerance"].get(kind, 0.0)
    for number, (asked, wanted) in enumerate(zip(golden["inputs"], expected, strict=False)):
        worst = distance(await ask(engine, asked), wanted)
        if not worst <= tolerance:  # nan, too
            off = f"{worst:.3g} off, {tolerance:g} is allowed"
            return f"golden input {number} of version {artefact.manifest.version} gives another output: {off}"
    return ""


async def ask(engine: Any, given: Any) -> Answer:
    """The engine's output for one golden input. It waits while the scheduler's queue is full."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return await _output(engine, given, deadline)
        except ServerOverloaded as full:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(full.retry_after)


async def _output(engine: Any, given: Any, deadline: float) -> Answer:
    match engine.description.task:
        case ModelTask.CLASSIFICATION:
            (found,) = await engine.classify([given], deadline=deadline)
            return {label.name: label.score for label in found.labels}
        case ModelTask.EMBEDDING:
            vectors = await engine.embed([given], deadline=deadline)
            return {str(index): value for index, value in enumerate(vectors[0].tolist())}
        case ModelTask.REGRESSION:
            (found,) = await engine.predict([House(**given)], deadline=deadline)
            prices = {"price": found.price_usd, "low": found.low_usd, "high": found.high_usd}
            return {name: math.log(price) for name, price in prices.items()}
        case ModelTask.LANGUAGE_ID:
            return {label.name: label.score for label in await engine.identify(given, deadline=deadline)}
        case ModelTask.LINGUISTICS:
            parsed: ParsedText = await engine.parse(given, deadline=deadline)
            tokens = {f"{t.start} {t.lemma} {t.pos} {t.dependency} {t.head}" for t in parsed.tokens}
            return dict.fromkeys(tokens | {f"{entity.start} {entity.type}" for entity in parsed.entities}, 1.0)
    raise NotImplementedError(f"golden inputs for {engine.description.task}")


def distance(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    """The largest difference of two numbers of the same name."""
    return max((abs(left.get(name, 0.0) - right.get(name, 0.0)) for name in {*left, *right}), default=0.0)
