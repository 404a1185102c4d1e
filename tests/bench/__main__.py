"""The benchmark: python -m tests.bench [--rounds 3] [--only WORD ...] [--out FOLDER].

Every round measures every row once, each beside what it is compared with, so that a slow minute of the machine hits
both; the table shows medians over the rounds and their range. It exits with 0 whatever was reached.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.load import require_h2load
from tests.bench.plot import draw
from tests.bench.row import Row, Target
from tests.bench.rows import ROWS
from tests.bench.stand import Stand
from tests.conftest import ROOT

Found = Mapping[str, Mapping[str, Sequence[float]]]  # row, figure, values of the rounds


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure all rows of the table.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names contain one of these words")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("QUINTET_DATA", ROOT / "data")))
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "state" / "bench")
    options = parser.parse_args()
    require_h2load()
    words = [word.lower() for word in options.only]
    rows = [row for row in ROWS if not words or any(word in row.name.lower() for word in words)]
    begun = time.monotonic()
    found = _measure(rows, options.rounds, options.data)
    print(table(rows, found))
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    seconds = time.monotonic() - begun
    document = {"machine": machine, "rounds": options.rounds, "seconds": seconds, "figures": found}
    (options.out / "bench.json").write_text(json.dumps(document, indent=1))
    draw(rows, found, options.out / "bench.png")
    print(f"\n{seconds:.0f} s; figures in {options.out}/bench.json, picture in {options.out}/bench.png")


def _measure(rows: list[Row], rounds: int, data: Path) -> Found:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as scratch, Stand(data, Path(scratch)) as stand:
        for number in range(rounds):
            for row in rows:
                if row.once and number:
                    continue
                print(f"round {number + 1} of {rounds}: {row.name}", flush=True)
                for figure, value in row.measure(stand).items():
                    found[row.name][figure].append(value)
    return found


def table(rows: list[Row], found: Found) -> str:
    """A line a target: its median, its range, and whether it was reached. As Markdown."""
    lines = ["", "| row | figure | median | range | target | reached |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for target in row.targets:
            values = found[row.name][target.figure]
            median = statistics.median(values)
            cells = [_number(median), f"{_number(min(values))} to {_number(max(values))}", target.text]
            lines.append(f"| {row.name} | {target.figure} | {' | '.join(cells)} | {_verdict(target, median)} |")
    return "\n".join(lines)


def _verdict(target: Target, value: float) -> str:
    return {True: "yes", False: "no", None: ""}[target.reached(value)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
