"""Which server stack: an empty RPC, and one that hands over to a thread for a millisecond, on each."""

from tests.bench import load
from tests.bench.requests import PRICE
from tests.bench.row import Figures, Row, Target
from tests.bench.rows.price import METHOD
from tests.bench.stand import Stand

STACKS = ("aio", "uvloop", "threads")


def _measure(stand: Stand) -> Figures:
    figures = {}
    for stack in STACKS:
        for what, milliseconds in (("empty", 0.0), ("1 ms on a thread", 1.0)):
            address, _ = stand.noop(stack, "bare", milliseconds)
            found = load.grpc(address, METHOD, PRICE, clients=64, seconds=2)
            figures[f"{stack}, {what}, calls/s"] = found.per_second
            figures[f"{stack}, {what}, p99 ms"] = found.p99_ms
    return figures


ROW = Row("Server stacks", _measure, tuple(Target(f"{stack}, empty, calls/s") for stack in STACKS), once=True)
