"""PredictPrice against an RPC that does nothing on the same stack, and against FastAPI + joblib."""

import json
from dataclasses import asdict

from tests.bench import load
from tests.bench.requests import HOUSE, PRICE
from tests.bench.row import Figures, Row, Target
from tests.bench.stand import Stand

METHOD = "PricingService/PredictPrice"
BODY = json.dumps(asdict(HOUSE)).encode()
BEST_PEER = 1046.0  # as in classify.py
_SECONDS = 3.0


def _measure(stand: Stand) -> Figures:
    ours = load.grpc(stand.quintet.address, METHOD, PRICE, clients=64, seconds=_SECONDS)
    nothing = load.grpc(stand.noop_wrapped, METHOD, PRICE, clients=64, seconds=_SECONDS)
    theirs = load.http(stand.joblib, BODY, clients=64, seconds=_SECONDS)
    return {
        "calls/s": ours.per_second,
        "an RPC that does nothing, calls/s": nothing.per_second,
        "FastAPI + joblib, calls/s": theirs.per_second,
        "share of doing nothing": ours.per_second / nothing.per_second,
        "times FastAPI + joblib": ours.per_second / theirs.per_second,
        "times the best peer (quoted)": ours.per_second / BEST_PEER,
    }


ROW = Row(
    "PredictPrice, 64 clients",
    _measure,
    (
        Target("calls/s"),
        Target("share of doing nothing", at_least=0.85),
        Target("times FastAPI + joblib", at_least=20),
        Target("times the best peer (quoted)", at_least=3),
    ),
)
