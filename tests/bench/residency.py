"""What residency costs: memory after many loads and evictions, and what loading does to the latency of others.

    python -m tests.bench.residency [memory] [neighbours] [--model topics] [--cycles 50] [--seconds 20]

memory: one process loads and unloads a model through the pool; its RSS before, at the peak, and after. The first two
cycles are not counted: libraries are imported and allocators grow in them once.
neighbours: a server answers Classify with "sentiment" to two callers, alone and while "topics" is loaded and unloaded
without a pause; rounds take turns, and p50 and p99 stand side by side.
"""

import argparse
import asyncio
import tempfile
import threading
import time
from pathlib import Path

import grpc
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc

from server.builders import Engines
from server.runtime import memory
from server.settings import Settings
from tests.conftest import ROOT, start_server, wait_ready
from tests.fakes import MemoryLedger

MIB = 2**20
WARM_UP = 2
CALLERS = 2
ROUNDS = 3
REQUEST = classification_pb2.ClassifyRequest(texts=["A quiet evening with friends, good food and no telephone."])


async def measure_memory(name: str, cycles: int) -> None:
    """Load and unload a model many times in this process."""
    settings = Settings(data=ROOT / "data", llm="off")
    async with Engines.create(settings, MemoryLedger()) as engines:
        pool, peak = engines.pool, 0
        before = 0
        for cycle in range(cycles + WARM_UP):
            if cycle == WARM_UP:
                before = memory.resident_bytes()
            await pool.load(name, time.monotonic() + 60)
            peak = max(peak, memory.resident_bytes())
            await pool.unload(name)
        after = memory.resident_bytes()
    numbers = f"{before / MIB:.0f} before, {peak / MIB:.0f} at the peak, {after / MIB:.0f} after"
    print(f"{cycles} cycles of {name}, MiB: {numbers}; after / before: {after / before:.3f}")


def measure_neighbours(name: str, seconds: float) -> None:
    """Latencies of Classify, alone and beside loading."""
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(ROOT / "data", Path(folder) / "log.txt", llm="off")
        try:
            wait_ready(server.address, "quintet.v1.ClassificationService")
            call(server.address, 3.0)
            found: dict[str, list[float]] = {"alone": [], "loading": []}
            cycles = 0
            for _ in range(ROUNDS):
                found["alone"] += call(server.address, seconds / ROUNDS)
                stop = threading.Event()
                done: list[int] = []
                churning = threading.Thread(
                    target=lambda stop=stop, done=done: done.append(churn(server.address, name, stop))
                )
                churning.start()
                found["loading"] += call(server.address, seconds / ROUNDS)
                stop.set()
                churning.join()
                cycles += done[0]
        finally:
            server.stop()
    print(f"{'':10}{'calls':>8}{'p50 ms':>9}{'p99 ms':>9}")
    for label, latencies in found.items():
        print(f"{label:10}{len(latencies):>8}{quantile(latencies, 0.5):>9.1f}{quantile(latencies, 0.99):>9.1f}")
    alone, loading = (quantile(found[label], 0.99) for label in found)
    print(f"{cycles} cycles of {name}; p99 loading / alone: {loading / alone:.2f}")


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


def churn(address: str, name: str, stop: threading.Event) -> int:
    """Load and unload until told to stop; return how often."""
    cycles = 0
    with grpc.insecure_channel(address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        while not stop.is_set():
            stub.UnloadModel(model_pb2.UnloadModelRequest(name=name), timeout=60)
            stub.LoadModel(model_pb2.LoadModelRequest(name=name), timeout=60)
            cycles += 1
    return cycles


def quantile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    return sorted(values)[int(share * len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=("memory", "neighbours", []), help="default: both")
    parser.add_argument("--model", default="topics", help="default: topics")
    parser.add_argument("--cycles", type=int, default=50, help="default: 50")
    parser.add_argument("--seconds", type=float, default=20.0, help="of calls, for each half; default: 20")
    options = parser.parse_args()
    parts = options.parts or ["memory", "neighbours"]
    if "memory" in parts:
        asyncio.run(measure_memory(options.model, options.cycles))
    if "neighbours" in parts:
        measure_neighbours(options.model, options.seconds)


if __name__ == "__main__":
    main()
