"""Ten times more calls than can be served: what still gets through, how refusals look, and what health says."""

import json
from concurrent.futures import ThreadPoolExecutor

from tests.bench import load
from tests.bench.requests import CLASSIFY_MANY
from tests.bench.row import Figures, Row, Target
from tests.bench.rows.classify import METHOD
from tests.bench.stand import Quintet, Stand, resident_mib

_SECONDS = 5.0
_OK = {"rpc_method": f"quintet.v1.{METHOD}", "rpc_response_status_code": "OK"}


def _goodput(server: Quintet, **options: float) -> float:
    """Calls a second that succeeded, as the server counted them: h2load does not read gRPC's status."""
    before = load.scraped(server.metrics, "rpc_server_call_duration_seconds_count", **_OK)
    load.grpc(server.address, METHOD, CLASSIFY_MANY, seconds=_SECONDS, **options)
    after = load.scraped(server.metrics, "rpc_server_call_duration_seconds_count", **_OK)
    return (after - before) / (_SECONDS + 1)  # with h2load's second of warming up


def _measure(stand: Stand) -> Figures:
    server = stand.quintet
    peak = max(_goodput(server, clients=clients) for clients in (8, 16))
    memory = resident_mib(server.pid)
    with ThreadPoolExecutor(1) as background:
        probing = background.submit(stand.output, "tests.bench.probe", server.address, str(_SECONDS))
        goodput = _goodput(server, clients=20, streams=200, rate=10 * peak)
        probed = json.loads(probing.result())
    return {
        "peak, calls/s of 16 texts": peak,
        "goodput at ten times the peak, calls/s": goodput,
        "goodput over peak": goodput / peak,
        "memory added, MiB": resident_mib(server.pid) - memory,
        **probed,
    }


ROW = Row(
    "Overload, 10 x capacity",
    _measure,
    (
        Target("goodput over peak", at_least=0.9),
        Target("refusal p99, ms", at_most=10),
        Target("refusals as they should be", at_least=1),
        Target("health p99, ms", at_most=50),
        Target("health SERVING", at_least=1),
        Target("memory added, MiB", at_most=16),
    ),
)
