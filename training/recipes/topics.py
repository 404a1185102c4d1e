"""Topics: a linear head on the embedder's vectors, for the eleven groups of Wikipedia's vital articles.

The head is a logistic regression on the vectors of the collection "wikipedia", so nothing is embedded twice. A tenth of
the articles, chosen by their titles, is the test.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize
from sklearn.linear_model import LogisticRegression

from server.inference.onnx_text import FILES
from training.datasets.wikipedia import UNCATEGORISED
from training.graphs.evaluate import evaluate_classifier
from training.recipe import Outcome, Workspace
from training.recipes.wikipedia import read_documents
from training.report import write_report

MAX_TOKENS = 256
INVERSE_REGULARISATION = 3.0  # of 1 to 100, the best on articles outside the test
SEED = 0
TEXT = """
A logistic regression on the vectors of all-MiniLM-L6-v2, trained on the first paragraphs of {train:,} articles and
tested on {test:,} others, which were embedded without their titles, like a caller's text. The labels are the eleven
groups of Wikipedia's vital articles. Texts that are not encyclopaedia articles differ more from the training data than
the test does.
"""


def build(workspace: Workspace) -> Outcome:
    """Fit the head, append it to the encoder, test."""
    folder, embedder, corpus = workspace.folder, workspace.artefact("embedder"), workspace.artefact("wikipedia")
    documents = read_documents(corpus)
    topics = np.array([document.metadata["topic"] for document in documents])
    rows = np.load(corpus / "passages.npy")[:, 0]  # the document of each passage
    first_passages = np.searchsorted(rows, np.arange(len(documents)))
    vectors = np.load(corpus / "vectors.npy")[first_passages]
    labels = sorted(set(topics) - {UNCATEGORISED})
    known = topics != UNCATEGORISED
    test = np.array([is_test(document.title) for document in documents])
    head = fit_head(vectors[known & ~test], topics[known & ~test], labels)

    (folder / "torch").mkdir()
    modules = list(SentenceTransformer(str(embedder / "torch"), device="cpu", local_files_only=True))
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    dense = Dense(len(head.weight[0]), len(labels), activation_function=torch.nn.Identity())
    dense.linear.weight.data = torch.from_numpy(head.weight)
    dense.linear.bias.data = torch.from_numpy(head.bias)
    SentenceTransformer(modules=[*modules, dense], device="cpu").save(str(folder / "torch"), create_model_card=False)
    workspace.link(embedder / "tokenizer.json", "tokenizer.json")
    for graph in FILES.values():
        append_head(embedder / graph, head, folder / graph)

    schema: dict[str, Any] = {
        "task": "classification",
        "labels": labels,
        "int8_scales": "row",
        "max_tokens": MAX_TOKENS,
        "torch": "sentence-transformers",
    }
    chosen = np.flatnonzero(known & test)
    texts = [documents[index].text for index in chosen]
    truth = np.array([labels.index(topics[index]) for index in chosen])
    with workspace.steps(2 * len(texts)) as advance:
        _, metrics = evaluate_classifier(folder, schema, texts, truth, advance)
    text = TEXT.format(train=int((known & ~test).sum()), test=len(texts))
    write_report(folder, "topics", text, metrics, "confusion.png")
    return Outcome(schema, metrics)


def is_test(title: str) -> bool:
    """A tenth of all titles, always the same."""
    return hashlib.sha256(f"topics:{title}".encode()).digest()[0] < 26


class Head(NamedTuple):
    """Logits are `vector @ weight.T + bias`."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def fit_head(vectors: NDArray[np.float32], topics: NDArray[np.str_], labels: list[str]) -> Head:
    """Fit a head whose logits are in the order of `labels`."""
    regression = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000)
    regression.fit(vectors, [labels.index(topic) for topic in topics])
    return Head(regression.coef_.astype(np.float32), regression.intercept_.astype(np.float32))


def append_head(encoder: Path, head: Head, target: Path) -> None:
    """Write the encoder's graph with the head at its end. The head is fp32 in both graphs."""
    model = onnx.load(encoder)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(head.weight, "head.weight"))
    graph.initializer.append(numpy_helper.from_array(head.bias, "head.bias"))
    inputs = [graph.output[0].name, "head.weight", "head.bias"]
    graph.node.append(helper.make_node("Gemm", inputs, ["logits"], "head", transB=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(head.bias)]))
    onnx.checker.check_model(model)
    onnx.save(model, target)
