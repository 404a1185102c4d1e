"""All rows, in the order of the table."""

from tests.bench.row import Row
from tests.bench.rows import analysis, classify, overhead, overload, peers, price, retrieve, stacks, start, streams

ROWS: tuple[Row, ...] = (
    start.ROW,
    classify.MANY,
    classify.ONE,
    price.ROW,
    peers.ROW,
    overhead.ROW,
    retrieve.ROW,
    streams.ROW,
    streams.HOLD,
    analysis.ROW,
    overload.ROW,
    overload.SINGLE,
    stacks.ROW,
)
