"""The embedder: all-MiniLM-L6-v2 as it was published, written as ONNX graphs. Nothing is trained."""

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import BertModel

from training.datasets.wikipedia import ENGLISH, read_articles
from training.graphs.bert import write_encoder
from training.graphs.evaluate import run_graph
from training.recipe import Outcome, Workspace
from training.report import write_report

MAX_TOKENS = 256
PROBES = 200  # texts that the graphs are compared on
TEXT = f"""
all-MiniLM-L6-v2 by the sentence-transformers project: six layers, 22.7 million parameters, 384 dimensions, at most
{MAX_TOKENS} tokens. The weights are unchanged; the ONNX graphs contain the pooling and the scaling to length 1. The
metrics compare model.onnx with the reference implementation, and model-int8.onnx with model.onnx, on {PROBES}
beginnings of Wikipedia articles.
"""


def build(workspace: Workspace) -> Outcome:
    """Link the published files, write their graphs, and compare them."""
    folder = workspace.folder
    for path, source in workspace.input("minilm").items():
        workspace.link(source, f"torch/{path}")
    workspace.link(folder / "torch" / "tokenizer.json", "tokenizer.json")

    bert = BertModel.from_pretrained(folder / "torch", add_pooling_layer=False, local_files_only=True)
    write_encoder(bert, folder)
    articles = read_articles(workspace.input("wikipedia-leads")[ENGLISH])
    probes = [article.text for article in articles[:: len(articles) // PROBES]][:PROBES]

    schema = {
        "task": "embedding",
        "dimensions": bert.config.hidden_size,
        "int8_scales": "row",
        "max_tokens": MAX_TOKENS,
        "engine": "onnx-int8",
        "torch": "sentence-transformers",
    }
    with workspace.steps(3 * PROBES) as advance:
        exact = run_graph(folder, schema, "embedding", probes, advance, engine="onnx")
        quantised = run_graph(folder, schema, "embedding", probes, advance, engine="onnx-int8")
        reference = SentenceTransformer(str(folder / "torch"), device="cpu", local_files_only=True)
        expected = reference.encode(probes, normalize_embeddings=True, show_progress_bar=False)
        advance(PROBES)
    metrics = {
        "cosine_to_torch_min": float(_cosines(exact, expected).min()),
        "cosine_int8_mean": float(_cosines(quantised, exact).mean()),
        "cosine_int8_min": float(_cosines(quantised, exact).min()),
    }
    write_report(folder, "embedder", TEXT, metrics)
    return Outcome(schema, metrics)


def _cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each pair of rows of length 1."""
    return np.asarray((left * right).sum(axis=1), np.float32)
