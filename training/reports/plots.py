"""Pictures for the reports, drawn without a display."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")


@contextmanager
def picture(path: Path, across: str, up: str, *, inches: float = 5.0) -> Iterator[Axes]:
    """Axes to draw on, labelled; written as PNG on leaving."""
    figure = Figure(figsize=(inches, inches), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    yield axes
    figure.savefig(path, dpi=100)


def draw_confusion(path: Path, labels: Sequence[str], truth: NDArray[np.int_], found: NDArray[np.int_]) -> None:
    """A confusion matrix: rows are the true classes and add up to 1."""
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (truth, found), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    with picture(path, "found", "true", inches=3 + 0.45 * len(labels)) as axes:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black"
                )
