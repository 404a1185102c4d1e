"""Whether Analyze, which is Python for the most part, moves the p99 of Classify."""

from concurrent.futures import ThreadPoolExecutor

from tests.bench import load
from tests.bench.requests import ANALYZE, CLASSIFY
from tests.bench.row import Figures, Row, Target
from tests.bench.rows.classify import METHOD
from tests.bench.stand import Stand

_RATE = 100.0  # calls of Classify a second: a small part of what the server can do
_SECONDS = 7.0


def _measure(stand: Stand) -> Figures:
    address = stand.quintet.address
    alone = load.grpc(address, METHOD, CLASSIFY, clients=4, rate=_RATE, seconds=_SECONDS)
    with ThreadPoolExecutor(1) as background:
        analysing = background.submit(load.grpc, address, "AnalysisService/Analyze", ANALYZE, seconds=_SECONDS + 1)
        beside = load.grpc(address, METHOD, CLASSIFY, clients=4, rate=_RATE, seconds=_SECONDS)
        analyses = analysing.result().per_second
    return {
        "p99 of Classify alone, ms": alone.p99_ms,
        "p99 beside Analyze, ms": beside.p99_ms,
        "p99 beside Analyze over alone": beside.p99_ms / alone.p99_ms,
        "p50 beside Analyze over alone": beside.p50_ms / alone.p50_ms,
        "Analyze, calls/s": analyses,
    }


ROW = Row(
    "Classify beside Analyze",
    _measure,
    (Target("p99 beside Analyze over alone", at_most=1.2), Target("Analyze, calls/s")),
)
