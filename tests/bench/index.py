"""How a collection does as it grows: building, bytes, opening, recall, latency, memory.

Usage: python -m tests.bench.index [--sizes 10000 100000 1000000] [--json data/bench/index.json]

Vectors are synthetic and clustered somewhat as those of texts are, 384 dimensions; queries are more of the same. Each
collection is written as a fold writes it, and measured in a process of its own, through the function that serves
Retrieve. "flat" compares all vectors, for the ratio beside what the index does. Latencies are of one thread.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document, ValueIn
from server.vectorstore.admin import create_collection
from server.vectorstore.ann_index import exact
from server.vectorstore.search import search
from server.vectorstore.segment import Content, read_segment
from server.vectorstore.snapshot import Memtable, Snapshot

DIMENSIONS = 384
QUERIES = 300
PART = 50_000
TEXT = "A passage of the synthetic collection, about as long as passages of an encyclopaedia are. " * 5
COLUMNS = ("passages", "build_s", "MB", "index_MB", "open_ms", "check_s", "recall", "p50_ms", "p99_ms", "flat_p50_ms")
MORE = ("speedup", "filter10_p50_ms", "filter1_p50_ms", "recall_filter10", "rss_MB", "rss_anon_MB")


def vectors(count: int, seed: int, near: int) -> NDArray[np.float32]:
    """Vectors of length 1: a centre for every thousand of `near`, and around it 48 directions of all 384.

    Embeddings of texts have clusters that run into each other, in which some dozens of directions matter. Clusters
    that stand apart would make every index look good.
    """
    chance = np.random.default_rng(seed)
    shape = np.random.default_rng(0)
    centres = shape.standard_normal((max(near // 1000, 1), DIMENSIONS), np.float32)
    directions = shape.standard_normal((48, DIMENSIONS), np.float32) / np.sqrt(48, dtype=np.float32)
    made = centres[chance.integers(0, len(centres), count)]
    made = made + 1.5 * chance.standard_normal((count, 48), np.float32) @ directions
    made += 0.5 * chance.standard_normal(made.shape, np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def make(index: Path, size: int) -> dict[str, float]:
    """Write the collection; documents have one passage each and a key with 100 values."""
    inventing = 0.0

    def parts() -> Iterator[NDArray[np.float32]]:
        nonlocal inventing
        for first in range(0, size, PART):
            begin = time.perf_counter()
            part = vectors(min(PART, size - first), first + 1, size)
            inventing += time.perf_counter() - begin
            yield part

    documents = (Document(f"{row:08}", TEXT, f"Title {row}", "", {"kind": str(row % 100)}) for row in range(size))
    passages = np.stack([np.arange(size), np.zeros(size), np.full(size, len(TEXT))], axis=1).astype(np.int32)
    content = Content(ModelIdentity("synthetic", "1", ""), DIMENSIONS, documents, passages, parts())
    start = time.perf_counter()
    create_collection(index, "bench", content)
    took = time.perf_counter() - start - inventing
    folder = index / "bench" / "00000000"
    found = folder / "vectors.index"
    return {
        "passages": size,
        "build_s": took,
        "MB": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        "index_MB": found.stat().st_size / 1e6 if found.exists() else 0.0,
    }


def measure(folder: Path) -> dict[str, Any]:
    """Open and search, in a process that has done nothing else."""
    before = memory()
    start = time.perf_counter()
    segment = read_segment(folder, "bench", check=False)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    read_segment(folder, "bench")
    checked = time.perf_counter() - start
    snapshot = Snapshot(Memtable(segment))
    size = len(segment.vectors)
    queries = vectors(QUERIES, 9, size)

    def found(*filters: ValueIn) -> Callable[[NDArray[np.float32]], list[int]]:
        return lambda query: [int(each.document_id) for each in search(snapshot, query, 10, filters)]

    tenth = np.arange(size) % 100 < 10
    times, rows = timed(found(), queries)
    after = memory()
    flat, truth = timed(lambda query: exact(segment.vectors, query, 10)[1].tolist(), queries[:100])
    filter10, rows10 = timed(found(ValueIn("kind", tuple(map(str, range(10))))), queries[:100])
    filter1, _ = timed(found(ValueIn("kind", ("7",))), queries[:100])
    inside = np.flatnonzero(tenth)
    allowed = segment.vectors[inside]
    truth10 = [inside[exact(allowed, query[None], 10)[1]].tolist() for query in queries[:100]]
    return {
        "probes": segment.ann.probes if segment.ann else 0,
        "open_ms": opened * 1e3,
        "check_s": checked,
        "recall": recall(truth, rows),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "flat_p50_ms": float(np.percentile(flat, 50)),
        "speedup": float(np.percentile(flat, 50) / np.percentile(times, 50)),
        "filter10_p50_ms": float(np.percentile(filter10, 50)),
        "filter1_p50_ms": float(np.percentile(filter1, 50)),
        "recall_filter10": recall(truth10, rows10),
        "rss_MB": after["VmRSS"] - before["VmRSS"],
        "rss_anon_MB": after["RssAnon"] - before["RssAnon"],
    }


def timed(
    find: Callable[[NDArray[np.float32]], list[int]], queries: NDArray[np.float32]
) -> tuple[list[float], list[list[int]]]:
    """Milliseconds and rows of each query; the first ten warm up."""
    for query in queries[:10]:
        find(query[None])
    times, rows = [], []
    for query in queries:
        start = time.perf_counter()
        rows.append(find(query[None]))
        times.append((time.perf_counter() - start) * 1e3)
    return times, rows


def recall(truth: list[list[int]], rows: list[list[int]]) -> float:
    """Share of the true 10 best that were found."""
    pairs = zip(truth, rows, strict=False)
    return float(np.mean([len(set(right) & set(found)) / len(right) for right, found in pairs]))


def memory() -> dict[str, float]:
    """MB of this process; what is mapped from files counts in VmRSS, and goes when memory is scarce."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1e3 for words in lines if words[0] in {"VmRSS:", "RssAnon:"}}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, default=Path("data/bench/index.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    results = []
    args.json.parent.mkdir(parents=True, exist_ok=True)
    print(" ".join(f"{name:>15}" for name in (*COLUMNS, *MORE)))
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.json.parent) as index:  # not in memory, where /tmp may be
            made = make(Path(index), size)
            command = [sys.executable, "-m", "tests.bench.index", "--measure", f"{index}/bench/00000000"]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        results.append(made | measured)
        print(" ".join(f"{results[-1][name]:15,.3f}" for name in (*COLUMNS, *MORE)), flush=True)
    args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
