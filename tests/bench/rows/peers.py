"""Classify and PredictPrice against LitServe, a model server for Python, with the same weights in batches of 64."""

from tests.bench import load
from tests.bench.requests import CLASSIFY, PRICE
from tests.bench.row import Figures, Row, Target
from tests.bench.rows import classify, price
from tests.bench.stand import Stand

_SECONDS = 3.0


def _measure(stand: Stand) -> Figures:
    figures = {}
    for what, kind, method, request, body in (
        ("Classify", "text", classify.METHOD, CLASSIFY, classify.BODY),
        ("PredictPrice", "price", price.METHOD, PRICE, price.BODY),
    ):
        ours = load.grpc(stand.quintet.address, method, request, clients=64, seconds=_SECONDS)
        with stand.litserve(kind) as address:
            theirs = load.http(address, body, clients=64, seconds=_SECONDS)
        figures[f"{what}, calls/s"] = ours.per_second
        figures[f"{what}, LitServe, calls/s"] = theirs.per_second
        figures[f"{what}, times LitServe"] = ours.per_second / theirs.per_second
    return figures


ROW = Row(
    "Beside LitServe, 64 clients",
    _measure,
    (
        Target("Classify, LitServe, calls/s"),
        Target("Classify, times LitServe", at_least=2.5),
        Target("PredictPrice, LitServe, calls/s"),
        Target("PredictPrice, times LitServe", at_least=3),
    ),
)
