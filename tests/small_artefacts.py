"""Small artefacts with real files, and engines and a scheduler to run them."""

import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from server.domain.models import ModelTask
from server.inference.onnx_text import load
from server.inference.scheduler import Scheduler
from server.inference.text import TextClassifier, TextEmbedder
from server.models.artefact import Artefact, open_artefact, write_manifest
from server.models.store import ModelStore

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    *("good", "fine", "bad", "awful", "house", "garden", "the", "a", "is", "was", "very", "not"),
)
LABELS = ["negative", "neutral", "positive"]
MAX_TOKENS = 16
WIDTH = 8
_INPUTS = ("input_ids", "attention_mask")


def soon() -> float:
    return time.monotonic() + 30


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    made = Scheduler(2, queue_limit=64)
    yield made
    made.close()


def onnx_classifier(
    artefact: Artefact, scheduler: Scheduler, engine: str | None = None, *, cache_bytes: int = 0
) -> TextClassifier:
    return TextClassifier(load(artefact, ModelTask.CLASSIFICATION, engine), scheduler, cache_bytes=cache_bytes)


def onnx_embedder(
    artefact: Artefact, scheduler: Scheduler, engine: str | None = None, *, cache_bytes: int = 0
) -> TextEmbedder:
    return TextEmbedder(load(artefact, ModelTask.EMBEDDING, engine), scheduler, cache_bytes=cache_bytes)


def is_gone_when_dropped(make: Callable[[], object]) -> bool:
    """Whether what `make` returns is freed without a search for cycles, which would hold the GIL."""
    made = make()
    left = weakref.ref(made)
    gc.disable()
    try:
        del made
        return left() is None
    finally:
        gc.enable()


def make_text_artefact(
    folder: Path, output: str, *, file: str = "model.onnx", positions: int = 0, **changes: Any
) -> Artefact:
    """An artefact whose graph is real and tiny: the mean of random word vectors, then `output`.

    "logits": float32 [batch, 3]; "embedding": float32 [batch, 8] of length 1.
    """
    folder /= output
    made = folder / "made"
    made.mkdir(parents=True)
    onnx.save(tiny_graph(output, positions=positions), made / file)
    tiny_tokenizer().save(str(made / "tokenizer.json"))
    schema: dict[str, Any] = {"engine": "onnx", "max_tokens": MAX_TOKENS}
    schema |= {"labels": LABELS} if output == "logits" else {"dimensions": WIDTH}
    write_manifest(made, name="tiny", version="1", licence="MIT", metrics={"accuracy": 0.5}, schema=schema | changes)
    ModelStore(folder / "models").publish(made)
    return open_artefact(folder / "models", "tiny")


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(mark, WORDS.index(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_padding(length=64)  # published tokenizers come with settings of their own
    return tokenizer


def tiny_graph(output: str, seed: int = 0, positions: int = 0) -> onnx.ModelProto:
    """With learned `positions`, it reads inputs of at most so many tokens."""
    random = np.random.default_rng(seed)
    words = "tokens" if not positions else "words"
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], [words]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["tokens", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "sequence"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "sequence"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
    ]
    if positions:
        nodes[1:1] = [
            helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
            helper.make_node("Squeeze", ["length"], ["end"]),
            helper.make_node("Range", ["zero", "end", "one"], ["places"]),
            helper.make_node("Gather", ["positions", "places"], ["placed"]),
            helper.make_node("Add", ["words", "placed"], ["tokens"]),
        ]
    if output == "logits":
        nodes.append(helper.make_node("MatMul", ["mean", "head"], [output]))
    else:
        nodes.append(helper.make_node("LpNormalization", ["mean"], [output], axis=1))
    constants = {
        "vectors": random.normal(size=(len(WORDS), WIDTH)).astype(np.float32),
        "head": random.normal(size=(WIDTH, len(LABELS))).astype(np.float32) * 4,
        "last": np.array([2]),
        "sequence": np.array([1]),
        **({"positions": random.normal(size=(positions, WIDTH)).astype(np.float32)} if positions else {}),
        **({"zero": np.array(0), "one": np.array(1)} if positions else {}),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence_length"]) for name in _INPUTS],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
