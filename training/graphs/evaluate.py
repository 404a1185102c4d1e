"""Runs finished graphs the way the server does, to measure what will be served."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import ConfusionMatrixDisplay, f1_score

from server.inference.onnx_text import FILES, OnnxForward
from server.models.artefact import Artefact, FileEntry, Manifest
from training.progress import Advance

T = TypeVar("T", str, tuple[str, str])  # a text, or a pair of texts

_BATCH = 16


def run_graph(
    folder: Path,
    schema: dict[str, Any],
    output: str,
    texts: Sequence[T],
    advance: Advance,
    *,
    engine: str = "",
) -> NDArray[np.float32]:
    """The output of the artefact in `folder` for texts, or pairs of them: float32 [texts, width].

    The engine is the schema's unless another is named. The artefact needs no manifest yet.
    """
    files = {path.relative_to(folder).as_posix(): FileEntry("", 0) for path in folder.rglob("*") if path.is_file()}
    manifest = Manifest(folder.name, "", "", files, licence="", schema=schema)
    forward = OnnxForward(Artefact(folder, manifest, ""), engine or schema["engine"], output)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    batches = [order[begin : begin + _BATCH] for begin in range(0, len(order), _BATCH)]

    def run(batch: list[int]) -> NDArray[np.float32]:
        values = forward([texts[index] for index in batch]).values
        advance(len(batch))
        return values

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        values = np.concatenate(list(executor.map(run, batches)))
    return values[np.argsort(order)]


def evaluate_classifier(
    folder: Path,
    schema: dict[str, Any],
    texts: Sequence[str],
    truth: NDArray[np.int64],
    advance: Advance,
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Logits of the better engine, which is put into the schema, and metrics; draws confusion.png.

    `truth` are indices into the schema's labels; `advance` gets the number of texts, twice.
    """
    logits = {engine: run_graph(folder, schema, "logits", texts, advance, engine=engine) for engine in FILES}
    exact, quantised = (logits[engine].argmax(axis=1) for engine in ("onnx", "onnx-int8"))
    schema["engine"] = recommend(truth, exact, quantised)
    served = logits[schema["engine"]]
    found = served.argmax(axis=1)
    labels = schema["labels"]
    inches = 3 + 0.45 * len(labels)
    figure = Figure(figsize=(inches, inches), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        truth,
        found,
        labels=range(len(labels)),
        display_labels=labels,
        normalize="true",
        values_format=".2f",
        cmap="Blues",
        colorbar=False,
        xticks_rotation=45,
        ax=figure.subplots(),
    )
    figure.savefig(folder / "confusion.png", dpi=100)
    return served, {
        "accuracy": float((found == truth).mean()),
        "macro_f1": float(f1_score(truth, found, average="macro")),
        "accuracy_fp32": float((exact == truth).mean()),
        "accuracy_int8": float((quantised == truth).mean()),
        "agreement_int8": float((exact == quantised).mean()),
    }


def recommend(truth: NDArray[np.int64], exact: NDArray[np.int64], quantised: NDArray[np.int64]) -> str:
    """The engine to serve with, given the true labels and those of both graphs: int8 if it is as good as fp32.

    int8 may lose at most 0.3 points of accuracy, and must agree with fp32 on 97 % of the texts: those on the border
    of two labels may change sides, which helps as often as not.
    """
    agreement = float((exact == quantised).mean())
    loss = float((exact == truth).mean() - (quantised == truth).mean())
    return "onnx-int8" if agreement >= 0.97 and loss <= 0.003 else "onnx"
