"""The table as a picture: how far every target was passed or missed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.row import Row, Target


def draw(rows: Sequence[Row], found: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """A bar a target: 1 is what was asked for, more is better; whiskers are the range over the rounds."""
    from matplotlib.figure import Figure

    names, middles, lows, highs = [], [], [], []
    for row in rows:
        for target in row.targets:
            if target.text:
                shares = sorted(_share(target, value) for value in found[row.name][target.figure])
                names.append(f"{row.name}: {target.figure} {target.text}")
                middles.append(statistics.median(shares))
                lows.append(middles[-1] - shares[0])
                highs.append(shares[-1] - middles[-1])
    figure = Figure(figsize=(10, 1 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:green" if middle >= 1 else "tab:red" for middle in middles]
    axes.barh(names, middles, xerr=(lows, highs), color=colours)
    axes.axvline(1, color="black")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("of the target")
    figure.savefig(path, dpi=120)


def _share(target: Target, value: float) -> float:
    """How much of the target is reached; bounded so that it can be drawn."""
    if target.at_least is not None:
        share = value / target.at_least
    else:
        assert target.at_most is not None
        share = target.at_most / value if value > 0 else 10.0
    return min(max(share, 0.01), 100.0)
