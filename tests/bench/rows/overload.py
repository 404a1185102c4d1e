"""Ten times more calls than can be served: what still gets through, how refusals look, and what health says.

The load, the probe and the server share the machine, so the peak is measured beside a probe, too.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from google.protobuf.message import Message

from tests.bench import load
from tests.bench.requests import CLASSIFY, CLASSIFY_MANY
from tests.bench.row import Figures, Row, Target
from tests.bench.rows.classify import METHOD
from tests.bench.stand import Quintet, Stand, resident_mib

_SECONDS = 5.0
_FILLING_SECONDS = 2.0  # one in which h2load warms up, and the longest wait that is let in
_MARGIN_SECONDS = 0.3  # before the load ends
_OK = {"rpc_method": f"quintet.v1.{METHOD}", "rpc_response_status_code": "OK"}


def _goodput(
    stand: Stand, server: Quintet, request: Message, probed: str, **options: float
) -> tuple[float, dict[str, float]]:
    """Calls a second that succeeded, as the server counted them (h2load does not read gRPC's status), and the probe's
    figures. Counted once the queues are full and before the load ends: what waits then is given up by its callers.
    """
    probe = stand.probe(server.address, _SECONDS + 1, probed)  # with h2load's second of warming up
    with ThreadPoolExecutor(1) as background:
        loading = background.submit(load.grpc, server.address, METHOD, request, seconds=_SECONDS, **options)
        time.sleep(_FILLING_SECONDS)
        before, begun = _succeeded(server), time.monotonic()
        time.sleep(_SECONDS + 1 - _FILLING_SECONDS - _MARGIN_SECONDS)
        answered = (_succeeded(server) - before) / (time.monotonic() - begun)
        loading.result()
    output, _ = probe.communicate(timeout=60)
    return answered, json.loads(output)


def _succeeded(server: Quintet) -> float:
    return load.scraped(server.metrics, "rpc_server_call_duration_seconds_count", **_OK)


def _measure(request: Message, texts: str, stand: Stand) -> Figures:
    server = stand.quintet
    peak = max(_goodput(stand, server, request, "none", clients=clients)[0] for clients in (8, 16))
    memory = resident_mib(server.pid)
    goodput, probed = _goodput(stand, server, request, texts, clients=20, streams=200, rate=10 * peak)
    return {
        "peak, calls/s": peak,
        "goodput at ten times the peak, calls/s": goodput,
        "goodput over peak": goodput / peak,
        "memory added, MiB": resident_mib(server.pid) - memory,
        **probed,
    }


_TARGETS = (
    Target("goodput over peak", at_least=0.9),
    Target("refusal p50, ms"),
    Target("refusal p99, ms", at_most=10),
    Target("refusals as they should be", at_least=1),
    Target("health p99, ms", at_most=50),
    Target("health SERVING", at_least=1),
    Target("memory added, MiB", at_most=16),
)
ROW = Row("Overload, 10 x capacity, 16 texts a call", partial(_measure, CLASSIFY_MANY, "many"), _TARGETS)
SINGLE = Row("Overload, 10 x capacity, single texts", partial(_measure, CLASSIFY, "single"), _TARGETS, once=True)
