"""Running finished graphs the way the server does, to measure what will be served."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.inference.onnx_text import OnnxForward
from server.models.artefact import Artefact, FileEntry, Manifest
from training.progress import Task

_AT_ONCE = 16


def run_graph(
    folder: Path, schema: dict[str, Any], output: str, texts: Sequence[str], task: Task, *, engine: str | None = None
) -> NDArray[np.float32]:
    """What the artefact in `folder` makes of the texts: float32 [texts, width]. `task` advances by texts.

    The engine is the schema's unless another is named. The artefact needs no manifest yet.
    """
    files = {path.relative_to(folder).as_posix(): FileEntry("", 0) for path in folder.rglob("*") if path.is_file()}
    manifest = Manifest(folder.name, "", "", files, licence="", schema=schema)
    forward = OnnxForward(Artefact(folder, manifest, ""), engine or schema["engine"], output)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    groups = [order[begin : begin + _AT_ONCE] for begin in range(0, len(order), _AT_ONCE)]

    def run(group: list[int]) -> NDArray[np.float32]:
        values = forward([texts[index] for index in group]).values
        task.advance(len(group))
        return values

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        parts = list(executor.map(run, groups))
    result = np.empty((len(texts), parts[0].shape[1]), np.float32)
    for group, part in zip(groups, parts, strict=True):
        result[group] = part
    return result


def recommend(truth: NDArray[np.int64], exact: NDArray[np.int64], quantised: NDArray[np.int64]) -> str:
    """The engine to serve with: int8 where it is as good as fp32, else fp32.

    Given are the true labels and those of both graphs. int8 may lose at most 0.3 points of accuracy, and must agree
    with fp32 on 97 % of the texts: those on the border of two labels may change sides, which helps as often as not.
    """
    agreement = float((exact == quantised).mean())
    loss = float((exact == truth).mean() - (quantised == truth).mean())
    return "onnx-int8" if agreement >= 0.97 and loss <= 0.003 else "onnx"
