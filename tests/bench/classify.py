"""Classify at the engine: python -m tests.bench.classify [MODEL ...]

Side by side, in one process: the raw session with its tokenizer, run by as many threads as there are cores, and the
engine with 64 callers of one text each; and both with one caller. Prints medians of rounds and of their ratios, of
texts by wall time and by CPU time, which says the same on cores that others use, too. Texts are counted by their
length in units of the mean length: the engine lets short texts go first, and shall gain nothing by that here.
"""

import asyncio

from tests.bench.measure import MODELS, ROUNDS, percentile, soon  # first: it sets the threads of the numeric libraries

# isort: split
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache

import numpy as np
import onnxruntime
import uvloop
from tokenizers import Tokenizer

from server.inference.onnx_session import open_session
from server.inference.onnx_text import FILES
from server.inference.scheduler import Scheduler
from server.inference.text import TextClassifier, text_cost
from server.models.artefact import Artefact, open_artefact
from tests.inference.texts import LEADS, OPINIONS
from tests.small_artefacts import onnx_classifier

CORES = 2
CALLERS = 64
MAX_TOKENS = 256
SECONDS = 2.0
KINDS = {
    "short": OPINIONS,
    "mixed": tuple(" ".join(LEADS[n : n + 1 + n % 16]) if n % 2 else OPINIONS[n] for n in range(200)),
}


def size(text: str, texts: Sequence[str]) -> float:
    """The length of a text, as far as it is read, in units of the mean of all."""
    return text_cost(len(text), MAX_TOKENS) / mean_cost(texts)


@cache
def mean_cost(texts: Sequence[str]) -> float:
    """Of some texts, in characters."""
    return statistics.mean(text_cost(len(text), MAX_TOKENS) for text in texts)


class Raw:
    """What any server of this model must at least compute for a text."""

    def __init__(self, artefact: Artefact) -> None:
        self._tokenizer = Tokenizer.from_file(str(artefact.part("tokenizer.json")))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(artefact.manifest.schema["max_tokens"])
        file = FILES[artefact.manifest.schema["engine"]]
        self._session: onnxruntime.InferenceSession = open_session(artefact.part(file))

    def __call__(self, text: str) -> None:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        self._session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    def rate(self, texts: Sequence[str]) -> tuple[float, float]:
        """Texts a second with a thread a core, and texts a second of CPU time."""
        done, units = [0] * CORES, [0.0] * CORES
        cpu = time.process_time()
        end = time.monotonic() + SECONDS

        def work(number: int) -> None:
            while time.monotonic() < end:
                text = texts[(done[number] + number * len(texts) // CORES) % len(texts)]
                self(text)
                done[number] += 1
                units[number] += size(text, texts)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CORES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(units) / SECONDS, sum(units) / (time.process_time() - cpu)

    def median(self, texts: Sequence[str]) -> float:
        """Seconds of one text, one at a time."""
        times = []
        for text in texts[:60]:
            begun = time.perf_counter()
            self(text)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)


async def rate(engine: TextClassifier, texts: Sequence[str]) -> tuple[float, float, float]:
    """Texts a second with 64 callers, texts a second of CPU time, and the 99th percentile of their seconds."""
    times: list[float] = []
    units: list[float] = []

    async def call(number: int) -> None:
        while True:
            text = texts[number % len(texts)]
            begun = time.perf_counter()
            await engine.classify([text], deadline=soon())
            times.append(time.perf_counter() - begun)
            units.append(size(text, texts))
            number += CALLERS + 1

    cpu = time.process_time()
    callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
    await asyncio.sleep(SECONDS)
    found = sum(units) / SECONDS, sum(units) / (time.process_time() - cpu), percentile(times, 0.99)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return found


async def median(engine: TextClassifier, texts: Sequence[str]) -> float:
    """Seconds of one text, one at a time."""
    times = []
    for text in texts[:60]:
        begun = time.perf_counter()
        await engine.classify([text], deadline=soon())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def main(names: Sequence[str]) -> None:
    """Measure and print."""
    print("model      texts   raw/s  engine/s  ratio  by CPU   p99 ms   raw p50 ms  engine p50 ms  ratio   batches")
    for name in names:
        artefact = open_artefact(MODELS, name)
        for kind, texts in KINDS.items():
            scheduler = Scheduler(CORES, queue_limit=256)
            raw, engine = Raw(artefact), onnx_classifier(artefact, scheduler)
            rows = []
            for _ in range(ROUNDS):
                raw_rate, raw_cpu = raw.rate(texts)
                engine_rate, engine_cpu, p99 = await rate(engine, texts)
                alone = raw.median(texts), await median(engine, texts)
                ratios = engine_rate / raw_rate, engine_cpu / raw_cpu, alone[1] / alone[0]
                rows.append((raw_rate, engine_rate, p99, *alone, *ratios))
            columns = zip(*rows, strict=True)
            raw_rate, engine_rate, p99, raw_p50, engine_p50, ratio, cpu, slower = map(statistics.median, columns)
            print(
                f"{name:10} {kind:5} {raw_rate:7.0f}  {engine_rate:8.0f}  {ratio:5.2f}  {cpu:6.2f} {1e3 * p99:8.0f} "
                f"{1e3 * raw_p50:12.2f}  {1e3 * engine_p50:13.2f}  {slower:5.2f}   "
                f"{dict(sorted(scheduler.counters[name].batches.items()))}"
            )
            scheduler.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:] or ["sentiment", "topics"]))
