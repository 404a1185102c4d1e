"""What everything around a handler costs: the same servicer, which does nothing, bare and wrapped."""

from tests.bench import load
from tests.bench.requests import PRICE
from tests.bench.row import Figures, Row, Target
from tests.bench.rows.price import METHOD
from tests.bench.stand import Stand, cpu_seconds

_SECONDS = 3.0


def _cost(address: str, pid: int) -> tuple[float, load.Load]:
    """Microseconds of processor time a call."""
    before = cpu_seconds(pid)
    found = load.grpc(address, METHOD, PRICE, clients=4, streams=4, seconds=_SECONDS)
    answered = found.per_second * (_SECONDS + 1)  # h2load's second of warming up was served, too
    return (cpu_seconds(pid) - before) / answered * 1e6, found


def _measure(stand: Stand) -> Figures:
    bare_us, bare = _cost(*stand.noop("uvloop", "bare"))
    wrapped_us, wrapped = _cost(*stand.noop("uvloop", "wrapped"))
    return {
        "added, us of processor time a call": wrapped_us - bare_us,
        "added, us of time a call at saturation": (1 / wrapped.per_second - 1 / bare.per_second) * 1e6,
        "bare, calls/s": bare.per_second,
        "wrapped, calls/s": wrapped.per_second,
    }


ROW = Row(
    "Around a handler",
    _measure,
    (
        Target("added, us of processor time a call", at_most=80),
        Target("added, us of time a call at saturation", at_most=80),
    ),
)
