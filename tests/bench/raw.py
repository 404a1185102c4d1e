"""The engines without a server: python -m tests.bench.raw classify|retrieve MODELS SECONDS [PASSAGES]. Prints JSON.

onnxruntime and tokenizers as their documentation shows them, one single-threaded session a core; nothing of the
server's own code, so that the server is not measured against itself.
"""

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.bench.requests import QUERY, TEXT


class Model:
    """One text in, float32 out."""

    def __init__(self, models: Path, name: str) -> None:
        folder = models / name / (models / name / "current").read_text().strip()
        schema = json.loads((folder / "manifest.json").read_text())["schema"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(schema["max_tokens"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = "model-int8.onnx" if schema["engine"] == "onnx-int8" else "model.onnx"
        self._session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self._inputs = {item.name for item in self._session.get_inputs()}
        self.name = f"{name} {schema['engine']}"

    def __call__(self, text: str) -> NDArray[np.float32]:
        """Logits or a vector, [1, width]."""
        encoding = self._tokenizer.encode(text)
        ids = np.array([encoding.ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        output = self._session.run(None, {name: feed[name] for name in self._inputs})[0]
        return np.asarray(output, np.float32)


def measure(works: list[Callable[[], object]], seconds: float) -> dict[str, float]:
    """Runs of all `works` at once, each on a thread of its own: how many a second, and the median in milliseconds."""
    times: list[list[float]] = [[] for _ in works]

    def repeat(work: Callable[[], object], found: list[float]) -> None:
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            work()
            found.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(works, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [value for found in times for value in found]
    return {"per_second": len(every) / seconds, "p50_ms": statistics.median(every) * 1000}


def classify(models: Path, seconds: float) -> dict[str, float]:
    """All cores, then one alone for the latency."""
    lanes = [Model(models, "sentiment") for _ in range(os.cpu_count() or 1)]
    for lane in lanes:
        lane(TEXT)
    alone = measure([lambda: lanes[0](TEXT)], seconds / 2)
    every = measure([lambda lane=lane: lane(TEXT) for lane in lanes], seconds / 2)  # type: ignore[misc]
    return {"per_second": every["per_second"], "p50_ms": alone["p50_ms"]}


def retrieve(models: Path, seconds: float, passages: int) -> dict[str, float]:
    """Embed and search `passages` random vectors exactly, one at a time."""
    import faiss

    embedder = Model(models, "embedder")
    width = embedder(QUERY).shape[1]
    vectors = np.random.default_rng(0).standard_normal((passages, width), np.float32)
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(width)
    index.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return measure([lambda: index.search(embedder(QUERY), 5)], seconds)


if __name__ == "__main__":
    what, folder, duration, *rest = sys.argv[1:]
    if what == "classify":
        print(json.dumps(classify(Path(folder), float(duration))))
    else:
        print(json.dumps(retrieve(Path(folder), float(duration), int(rest[0]))))
