"""StreamChat as a relay, against the openai SDK that reads from the same upstream; and many streams at once."""

import json

from tests.bench.row import Figures, Row, Target
from tests.bench.stand import Stand, resident_mib

STREAMS = 500


def _read(stand: Stand, kind: str, *arguments: int) -> dict[str, float]:
    address = stand.upstream if kind == "sdk" else stand.quintet.address
    read: dict[str, float] = json.loads(stand.output("tests.bench.reader", kind, address, *map(str, arguments)))
    return read


def _measure(stand: Stand) -> Figures:
    stand.quintet  # noqa: B018  # it starts before anything is measured
    alone, relayed = (_read(stand, kind, 2000, 0, 1) for kind in ("sdk", "relay"))
    return {
        "chunks/s": relayed["chunks_per_second"],
        "openai SDK alone, chunks/s": alone["chunks_per_second"],
        "share of the SDK's chunks/s": relayed["chunks_per_second"] / alone["chunks_per_second"],
        "added time to first token p50, ms": relayed["first_p50_ms"] - alone["first_p50_ms"],
    }


def _hold(stand: Stand) -> Figures:
    before = resident_mib(stand.quintet.pid)
    read = _read(stand, "relay", 10, 500, STREAMS)
    return {
        "streams that came whole": read["whole"],
        "chunks/s": read["chunks_per_second"],
        "time over the upstream's": read["seconds"] / 5.0,  # ten chunks with pauses of 500 ms
        "memory added, MiB": resident_mib(stand.quintet.pid) - before,
    }


ROW = Row(
    "StreamChat, 1 stream",
    _measure,
    (
        Target("chunks/s"),
        Target("share of the SDK's chunks/s", at_least=0.9),
        Target("added time to first token p50, ms", at_most=2),
    ),
)
HOLD = Row(
    f"StreamChat, {STREAMS} streams",
    _hold,
    (Target("streams that came whole", at_least=STREAMS), Target("time over the upstream's")),
    once=True,
)
