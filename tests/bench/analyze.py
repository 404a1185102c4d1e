"""What parsing does to Classify: python -m tests.bench.analyze

The 99th percentile of Classify, one short text a call from two callers, alone and while spaCy parses without a pause:
on a thread of the same process, and in the process of its own in which the server has it.
"""

import asyncio

from tests.bench.measure import MODELS, ROUNDS, percentile, soon  # first: it sets the threads of the numeric libraries

# isort: split
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop

from server.inference.scheduler import Scheduler
from server.inference.text import TextClassifier
from server.models.artefact import open_artefact
from server.tasks.analysis.spacy_parser import SpacyParser
from server.tasks.analysis.spacy_process import Parser
from tests.inference.texts import LEADS, OPINIONS
from tests.small_artefacts import onnx_classifier

CALLERS = 2
SECONDS = 3.0
TEXT = " ".join(LEADS)[:5000]


async def forever(parse: Callable[[], Awaitable[object]], times: list[float]) -> None:
    """Parse again and again."""
    while True:
        begun = time.perf_counter()
        await parse()
        times.append(time.perf_counter() - begun)


async def p99(classifier: TextClassifier, parse: Callable[[], Awaitable[object]] | None) -> tuple[float, float]:
    """Of Classify, in seconds; and the median of a parse, if there are any."""
    times: list[float] = []
    parses: list[float] = []

    async def call(number: int) -> None:
        while True:
            begun = time.perf_counter()
            await classifier.classify([OPINIONS[number % len(OPINIONS)]], deadline=soon())
            times.append(time.perf_counter() - begun)
            number += 1

    tasks = [asyncio.create_task(call(60 * number)) for number in range(CALLERS)]
    if parse:
        tasks.append(asyncio.create_task(forever(parse, parses)))
    await asyncio.sleep(SECONDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return percentile(times, 0.99), statistics.median(parses) if parses else 0.0


async def main() -> None:
    """Measure and print."""
    scheduler, lane = Scheduler(2, queue_limit=64), Scheduler(1, queue_limit=64)
    artefact = open_artefact(MODELS, "en_core_web_sm")
    parser = SpacyParser(artefact, lane)
    inside = Parser(str(artefact.part("pipeline")))
    classifier = onnx_classifier(open_artefact(MODELS, "topics"), scheduler)

    async def on_a_thread() -> None:
        await lane.run(partial(inside.parse, TEXT), deadline=soon())

    async def in_a_process() -> None:
        await parser.parse(TEXT, deadline=soon())

    kinds = {"alone": None, "spaCy on a thread": on_a_thread, "spaCy in a process": in_a_process}
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, parse in kinds.items():
            found[kind].append(await p99(classifier, parse))
    print("                     p99 of Classify, ms   ratio to alone   a parse, ms")
    for kind, rows in found.items():
        ratio = statistics.median(row[0] / alone[0] for row, alone in zip(rows, found["alone"], strict=True))
        slow, parse_seconds = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{kind:20} {slow:20.1f} {ratio:16.2f} {parse_seconds:13.0f}")
    parser.close()
    lane.close()
    scheduler.close()


if __name__ == "__main__":
    uvloop.run(main())
