"""Classify against the raw engine and against FastAPI + transformers.pipeline."""

import json

from tests.bench import load
from tests.bench.requests import CLASSIFY, TEXT
from tests.bench.row import Figures, Row, Target
from tests.bench.stand import Stand

METHOD = "ClassificationService/Classify"
BODY = json.dumps({"text": TEXT}).encode()
# Calls a second with 64 clients of the best of PyTriton, MLServer, Ray Serve and LitServe on two cores like these,
# with the same weights, text and one worker each. They are quoted, not run.
BEST_PEER = 310.0
_SECONDS = 3.0


def _against(stand: Stand, clients: int) -> tuple[load.Load, load.Load, dict[str, float]]:
    ours = load.grpc(stand.quintet.address, METHOD, CLASSIFY, clients=clients, seconds=_SECONDS)
    raw = json.loads(stand.output("tests.bench.raw", "classify", str(stand.models), str(_SECONDS)))
    theirs = load.http(stand.pipeline, BODY, clients=clients, seconds=_SECONDS)
    return ours, theirs, raw


def _many(stand: Stand) -> Figures:
    ours, theirs, raw = _against(stand, 64)
    return {
        "calls/s": ours.per_second,
        "raw engine, texts/s": raw["per_second"],
        "FastAPI + pipeline, calls/s": theirs.per_second,
        "share of the raw engine": ours.per_second / raw["per_second"],
        "times FastAPI + pipeline": ours.per_second / theirs.per_second,
        "times the best peer (quoted)": ours.per_second / BEST_PEER,
        "p99, ms": ours.p99_ms,
    }


def _one(stand: Stand) -> Figures:
    ours, theirs, raw = _against(stand, 1)
    return {
        "p50, ms": ours.p50_ms,
        "raw engine p50, ms": raw["p50_ms"],
        "p50 over the raw engine's": ours.p50_ms / raw["p50_ms"],
        "FastAPI + pipeline p50, ms": theirs.p50_ms,
        "times FastAPI + pipeline": ours.per_second / theirs.per_second,
    }


MANY = Row(
    "Classify, 64 clients",
    _many,
    (
        Target("calls/s"),
        Target("share of the raw engine", at_least=0.85),
        Target("times FastAPI + pipeline", at_least=10),
        Target("times the best peer (quoted)", at_least=2.5),
    ),
)
ONE = Row("Classify, 1 client", _one, (Target("p50, ms"), Target("p50 over the raw engine's", at_most=1.3)))
