"""A warm start: when the port is open, when everything but a language model serves, and what it weighs then."""

import tempfile
import time
from pathlib import Path

from tests.bench import load
from tests.bench.requests import ANALYZE, CLASSIFY, PRICE, RETRIEVE
from tests.bench.row import Figures, Row, Target
from tests.bench.stand import Stand, resident_mib
from tests.conftest import start_server, wait_ready


def _measure(stand: Stand) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        running = start_server(stand.data, Path(folder, "log"), llm="off")  # it returns when the port is printed
        try:
            open_after = time.perf_counter() - begun
            wait_ready(running.address)
            ready_after = time.perf_counter() - begun
            for method, request in (
                ("ClassificationService/Classify", CLASSIFY),
                ("PricingService/PredictPrice", PRICE),
                ("RagService/Retrieve", RETRIEVE),
                ("AnalysisService/Analyze", ANALYZE),
            ):
                load.grpc(running.address, method, request, clients=8, seconds=1)
            return {
                "port open after, s": open_after,
                "all SERVING after, s": ready_after,
                "resident memory with children after work, MiB": resident_mib(running.process.pid),
            }
        finally:
            running.stop()


ROW = Row(
    "Start and size",
    _measure,
    (
        Target("port open after, s", at_most=1.5),
        Target("all SERVING after, s", at_most=4),
        Target("resident memory with children after work, MiB", at_most=600),
    ),
)
