"""The reranker: ms-marco-MiniLM-L12-v2 as an 8-bit ONNX graph. Nothing is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from server.inference.reranker import OUTPUT
from training.errors import WrongContent
from training.graphs.evaluate import run_graph
from training.progress import Task
from training.recipe import Outcome, Workshop
from training.reports.report import write_report

MAX_TOKENS = 512
# The example on the model's card, with the logits of the published fp32 weights that it gives.
QUERY = "How many people live in Berlin?"
PUBLISHED = {
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.": 9.218911,
    "Berlin is well known for its museums.": -4.0780287,
}
TOLERANCE = 0.5  # of logits that reach from about -11 to 11; 8 bits cost something
TEXT = """
A cross-encoder by the sentence-transformers project: 12 layers that read a query and a passage together, trained on
MS MARCO. It is byte for byte what its carrier has, quantised there. The metric is its largest difference from the
logits that the model's card gives for two passages.
"""


def build(workshop: Workshop) -> Outcome:
    """Put the graph in place and compare it with what its authors published."""
    files = workshop.input("ms-marco-minilm-l12")
    workshop.place(files["model.onnx"], "model-int8.onnx")
    workshop.place(files["tokenizer.json"], "tokenizer.json")
    schema = {"task": "reranking", "engine": "onnx-int8", "max_tokens": MAX_TOKENS}
    with workshop.steps(len(PUBLISHED)) as task:
        logits = run_pairs(workshop.folder, schema, [(QUERY, text) for text in PUBLISHED], task)
    difference = max(abs(float(logit) - card) for logit, card in zip(logits, PUBLISHED.values(), strict=True))
    if difference > TOLERANCE:
        raise WrongContent(f"the reranker is {difference:.2f} off the published logits; {TOLERANCE} is allowed")
    metrics = {"largest_difference": difference}
    write_report(workshop.folder, "reranker", TEXT, metrics)
    return Outcome(schema, metrics)


def run_pairs(
    folder: Path, schema: dict[str, Any], pairs: Sequence[tuple[str, str]], task: Task
) -> NDArray[np.float32]:
    """The reranker's logits: float32 [pairs]."""
    texts = cast("Sequence[str]", pairs)  # what runs a graph hands on what it is given
    return run_graph(folder, schema, OUTPUT, texts, task)[:, 0]
