"""What everything around a handler costs: the same servicer, which does nothing, bare and wrapped."""

from tests.bench import load
from tests.bench.requests import PRICE
from tests.bench.row import Figures, Row, Target
from tests.bench.rows.price import METHOD
from tests.bench.stand import Stand, cpu_seconds

_TURNS = 3
_SECONDS = 1.5


def _measure(stand: Stand) -> Figures:
    servers = {kind: stand.noop("uvloop", kind) for kind in ("bare", "wrapped")}
    costs: dict[str, list[float]] = {kind: [] for kind in servers}
    rates: dict[str, list[float]] = {kind: [] for kind in servers}
    for _ in range(_TURNS):  # in turns, and the best of each: whatever else runs only adds
        for kind, (address, pid) in servers.items():
            before = cpu_seconds(pid)
            found = load.grpc(address, METHOD, PRICE, clients=4, streams=4, seconds=_SECONDS)
            answered = found.per_second * (_SECONDS + 1)  # h2load's second of warming up was served, too
            costs[kind].append((cpu_seconds(pid) - before) / answered * 1e6)
            rates[kind].append(found.per_second)
    bare, wrapped = max(rates["bare"]), max(rates["wrapped"])
    return {
        "added, us of processor time a call": min(costs["wrapped"]) - min(costs["bare"]),
        "added, us of time a call at saturation": (1 / wrapped - 1 / bare) * 1e6,
        "bare, calls/s": bare,
        "wrapped, calls/s": wrapped,
    }


ROW = Row(
    "Around a handler",
    _measure,
    (
        Target("added, us of processor time a call", at_most=80),
        Target("added, us of time a call at saturation", at_most=80),
    ),
)
