"""What residency costs: memory after many loads and evictions, and what loading does to the latency of others.

    python -m tests.bench.residency [memory] [neighbours] [--model topics] [--cycles 50] [--windows 20]

memory: one process loads and unloads a model through the manager; its RSS before, at the peak, and after. The first two
cycles are not counted: libraries are imported and allocators grow in them once.
neighbours: a server answers Classify with "sentiment" to two callers, alone and while "topics" is loaded and unloaded
without a pause. Many short windows alternate; each one beside loading is compared with the two alone around it, and
the median of the ratios counts. The last column says how much windows differ in which nothing differs.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from itertools import pairwise
from pathlib import Path

import grpc
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc

from server.domain.models import ModelTask
from server.inference.scheduler import Scheduler
from server.inference.text_models import text_model
from server.models import process_memory
from server.models.manager import ModelManager
from server.models.registry import open_store
from server.models.spec import ModelSettings
from tests.conftest import ROOT, start_server, wait_ready

MIB = 2**20
WARM_UP = 2
CALLERS = 2
WARM_UP_SECONDS, WINDOW_SECONDS = 3.0, 3.0
REQUEST = classification_pb2.ClassifyRequest(texts=["A quiet evening with friends, good food and no telephone."])


async def measure_memory(name: str, cycles: int) -> None:
    """Load and unload a model many times in this process."""
    store, scheduler = open_store(ROOT / "data" / "models"), Scheduler(1, 256)
    async with aclosing(ModelManager(store, None)) as manager:
        manager.add(text_model(name, ModelTask.CLASSIFICATION, ModelSettings(), scheduler, 0))
        peak = 0
        before = 0
        for cycle in range(cycles + WARM_UP):
            if cycle == WARM_UP:
                before = process_memory.resident_bytes()
            await manager.load(name, time.monotonic() + 60)
            peak = max(peak, process_memory.resident_bytes())
            await manager.unload(name)
        after = process_memory.resident_bytes()
    numbers = f"{before / MIB:.0f} before, {peak / MIB:.0f} at the peak, {after / MIB:.0f} after"
    print(f"{cycles} cycles of {name}, MiB: {numbers}; after / before: {after / before:.3f}")


def measure_neighbours(name: str, windows: int, seconds: float) -> None:
    """Latencies of Classify in alternating windows: alone, beside loading, alone, and so on."""
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    cycles = 0
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(ROOT / "data", Path(folder) / "log.txt", llm="off", result_cache="0")
        try:
            wait_ready(server.address)
            call(server.address, WARM_UP_SECONDS)
            alone.append(call(server.address, seconds))
            for _ in range(windows):
                with churning(server.address, name) as done:
                    beside.append(call(server.address, seconds))
                cycles += len(done)
                alone.append(call(server.address, seconds))
        finally:
            server.stop()
    print(f"{sum(map(len, alone + beside))} calls of Classify; {name} loaded {cycles} times in {windows} windows")
    print(f"{'':5}{'alone, ms':>11}{'loading, ms':>13}{'loading/alone':>15}{'quartiles':>15}{'alone/alone':>13}")
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        quiet = [quantile(window, share) for window in alone]
        busy = [quantile(window, share) for window in beside]
        ratios = [2 * each / sum(around) for each, around in zip(busy, pairwise(quiet), strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        noise = statistics.median(max(around) / min(around) for around in pairwise(quiet))
        medians = f"{statistics.median(quiet):11.1f}{statistics.median(busy):13.1f}{middle:15.2f}"
        print(f"{label:5}{medians}{f'{low:.2f} to {high:.2f}':>15}{noise:13.2f}")


def call(address: str, seconds: float) -> list[float]:
    """Milliseconds of every call that `CALLERS` threads make one after the other."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def work() -> None:
        with grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            stub = classification_pb2_grpc.ClassificationServiceStub(channel)
            while time.monotonic() < end:
                begun = time.perf_counter()
                stub.Classify(REQUEST, timeout=30)
                latencies.append((time.perf_counter() - begun) * 1000)

    threads = [threading.Thread(target=work) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


@contextmanager
def churning(address: str, name: str) -> Iterator[list[float]]:
    """Load and unload without a pause while the body runs; yields the seconds that each load took."""
    stop = threading.Event()
    done: list[float] = []

    def churn() -> None:
        with grpc.insecure_channel(address) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            while not stop.is_set():
                stub.UnloadModel(model_pb2.UnloadModelRequest(name=name), timeout=60)
                begun = time.monotonic()
                stub.LoadModel(model_pb2.LoadModelRequest(name=name), timeout=60)
                done.append(time.monotonic() - begun)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    return sorted(values)[int(share * len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=("memory", "neighbours", []), help="default: both")
    parser.add_argument("--model", default="topics", help="default: topics")
    parser.add_argument("--cycles", type=int, default=50, help="default: 50")
    parser.add_argument("--windows", type=int, default=20, help="beside loading; default: 20")
    parser.add_argument("--seconds", type=float, default=WINDOW_SECONDS, help="of a window; default: 3")
    options = parser.parse_args()
    parts = options.parts or ["memory", "neighbours"]
    if "memory" in parts:
        asyncio.run(measure_memory(options.model, options.cycles))
    if "neighbours" in parts:
        measure_neighbours(options.model, options.windows, options.seconds)


if __name__ == "__main__":
    main()
