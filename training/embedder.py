"""The embedder: all-MiniLM-L6-v2 as it was published, exported to ONNX. Nothing is trained."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import BertModel

from training.export import Encoder, export
from training.recipe import Outcome, Workshop
from training.report import write_report

MAX_TOKENS = 256
PROBES = (
    "hello",
    "How do I reset my password?",
    "The quick brown fox jumps over the lazy dog.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. " * 12,
)
TEXT = """
all-MiniLM-L6-v2 by the sentence-transformers project: six layers, 22.7 million parameters, 384 dimensions, at most
256 tokens. The weights are unchanged; the ONNX graph holds the pooling and the scaling to length 1. The metric
compares the graph with the reference implementation on short and long texts.
"""


def build(workshop: Workshop) -> Outcome:
    """Put the published folder in place, export it, and compare."""
    torch_folder = workshop.folder / "torch"
    for path, source in workshop.input("minilm").items():
        workshop.place(source, f"torch/{path}" if path != "LICENSE" else path)
    workshop.place(torch_folder / "tokenizer.json", "tokenizer.json")

    bert = BertModel.from_pretrained(
        torch_folder, add_pooling_layer=False, attn_implementation="eager", local_files_only=True
    )
    export(Encoder(bert), workshop.folder / "model.onnx", "embedding")

    reference = SentenceTransformer(str(torch_folder), device="cpu", local_files_only=True)
    expected = reference.encode(list(PROBES), normalize_embeddings=True)
    found = _embed(workshop.folder / "model.onnx", workshop.folder / "tokenizer.json", PROBES)
    metrics = {"cosine_to_torch": float((expected * found).sum(axis=1).min())}
    write_report(workshop.folder, "embedder", TEXT, metrics)
    schema = {
        "task": "embedding",
        "dimensions": found.shape[1],
        "max_tokens": MAX_TOKENS,
        "engine": "onnx",
        "torch": "sentence-transformers",
    }
    return Outcome(schema, metrics)


def _embed(model: Path, tokenizer_file: Path, texts: tuple[str, ...]) -> NDArray[np.float32]:
    """Embed texts one by one. Returns float32 [texts, dimensions]."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids = np.array([encoding.ids], dtype=np.int64)
        rows.append(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0])
    return np.stack(rows)
