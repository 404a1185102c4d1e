"""BERT models of PyTorch as ONNX graphs, written for onnxruntime, with a dynamic batch and sequence length.

    sentence encoder     input_ids, attention_mask -> embedding [batch, hidden size], rows of length 1
    sequence classifier  input_ids, attention_mask -> logits    [batch, labels]

torch's exporter writes two to three times as many nodes, many of which compute shapes, and attention that onnxruntime
does not recognise. Each node takes one or two microseconds, and a short text less than a millisecond.

Tokens are rows of one matrix from the first layer to the last. A classifier reads only the first token, so the last
layer computes only keys and values of the other tokens: this saves five sixths of one layer and changes no result.
token_type_ids are zeros inside the graph: every text has one segment. SkipLayerNormalization would fuse two nodes, but
takes five times as long as both: it is not vectorised.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from torch import nn
from transformers import BertForSequenceClassification, BertModel

from server.inference.onnx_text import FILES
from training.graphs.arithmetic import Arithmetic, Exact, Floats, Int8, Operand
from training.graphs.onnx_graph import Graph

_GELU_LEAST = -0.17  # the lower bound of x Phi(x)
_INPUTS = [
    helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
    for name in ("input_ids", "attention_mask")
]
_ARITHMETICS: dict[str, Arithmetic] = {"onnx": Exact(), "onnx-int8": Int8()}  # by engine


def write_encoder(bert: BertModel, folder: Path) -> None:
    """Write both graphs of an encoder: the mean of the token vectors under the mask, scaled to length 1."""
    for engine, arithmetic in _ARITHMETICS.items():
        onnx.save(_encoder(bert, arithmetic), folder / FILES[engine])


def write_classifier(model: BertForSequenceClassification, folder: Path) -> None:
    """Write both graphs of a sequence classifier."""
    for engine, arithmetic in _ARITHMETICS.items():
        onnx.save(_classifier(model, arithmetic), folder / FILES[engine])


def _encoder(bert: Any, arithmetic: Arithmetic) -> ModelProto:
    body = _Body(bert, arithmetic)
    rows = body.embeddings()
    for number, layer in enumerate(bert.encoder.layer):
        rows = body.layer(f"layer{number}", layer, rows)
    graph = body.graph
    weights = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    weighted = graph.add("Mul", body.cube(rows), graph.add("Unsqueeze", weights, graph.integers(-1)))
    total = graph.add("ReduceSum", weighted, graph.integers(1), keepdims=0)
    # The sum serves as the mean: both have the same direction, and the length becomes 1.
    unit = graph.add("LpNormalization", total, axis=-1, p=2)
    return graph.model(_INPUTS, unit, "embedding", body.width)


def _classifier(model: Any, arithmetic: Arithmetic) -> ModelProto:
    bert = model.bert
    body = _Body(bert, arithmetic)
    rows = body.embeddings()
    *inner, last = bert.encoder.layer
    for number, layer in enumerate(inner):
        rows = body.layer(f"layer{number}", layer, rows)
    first = body.layer("last", last, rows, first_only=True)
    pooled = body.graph.add("Tanh", body.dense("pooler", bert.pooler.dense, first))
    logits = body.dense("classifier", model.classifier, pooled)
    return body.graph.model(_INPUTS, logits, "logits", model.config.num_labels)


class _Body:
    """The part that both kinds share. Rows are float32 [tokens of all texts, width]."""

    def __init__(self, bert: Any, arithmetic: Arithmetic) -> None:
        if bert.config.hidden_act != "gelu":
            raise ValueError(f"graphs are written for BERT models with GELU, not {bert.config.hidden_act}")
        self.graph = graph = Graph()
        self.width = bert.config.hidden_size
        self._heads = bert.config.num_attention_heads
        self._embeddings = bert.embeddings
        self._arithmetic = arithmetic
        self._shape = graph.add("Shape", "input_ids")
        self._batch = graph.add("Slice", self._shape, graph.integers(0), graph.integers(1))
        self._tokens = graph.add("Shape", graph.add("Reshape", "input_ids", graph.integers(-1)))  # [1]
        self._cube = graph.add("Concat", self._shape, graph.integers(self.width), axis=0)
        self._mask = graph.add("Cast", "attention_mask", to=TensorProto.INT32)

    def cube(self, rows: str) -> str:
        """Rows as [batch, sequence, width]."""
        return self.graph.add("Reshape", rows, self._cube)

    def embeddings(self) -> str:
        """Words plus positions, normalised."""
        graph, parts = self.graph, self._embeddings
        words = self._arithmetic.look_up(graph, _numbers(parts.word_embeddings.weight), "input_ids", "words")
        positions = _numbers(parts.position_embeddings.weight) + _numbers(parts.token_type_embeddings.weight)[0]
        length = graph.add("Slice", self._shape, graph.integers(1), graph.integers(2))
        used = graph.add("Slice", graph.constant("positions", positions), graph.integers(0), length)
        return self._rows(self._normalised("embeddings", parts.LayerNorm, graph.add("Add", words, used)))

    def layer(self, name: str, layer: Any, rows: str, *, first_only: bool = False) -> str:
        """The output of a layer: of all rows, or only of the first token of each text."""
        attention = layer.attention
        queries, count, shape = rows, self._tokens, self._cube
        keys_operand = queries_operand = self._arithmetic.operand(self.graph, rows, self._tokens)
        if first_only:
            graph, begin, end = self.graph, self.graph.integers(0), self.graph.integers(1)
            queries = self._rows(graph.add("Slice", self.cube(rows), begin, end, end))
            count = self._batch
            shape = graph.add("Concat", self._batch, graph.integers(1, self.width), axis=0)
            queries_operand = self._arithmetic.operand(graph, queries, count)
        context = self._attention(f"{name}.attention", attention.self, queries_operand, keys_operand, shape)
        attended, bias = self._product(
            f"{name}.attended", attention.output.dense, self._arithmetic.operand(self.graph, context, count)
        )
        middle = self._summed(f"{name}.middle", attention.output.LayerNorm, attended, bias, queries)
        wide, bias = self._product(
            f"{name}.up", layer.intermediate.dense, self._arithmetic.operand(self.graph, middle, count)
        )
        wide = self.graph.add("BiasGelu", wide, self.graph.constant(f"{name}.up.bias", bias), extra=True)
        down, bias = self._product(
            f"{name}.down", layer.output.dense, self._arithmetic.operand(self.graph, wide, count, _GELU_LEAST)
        )
        return self._summed(f"{name}.out", layer.output.LayerNorm, down, bias, middle)

    def dense(self, name: str, linear: nn.Linear, rows: str) -> str:
        """A small linear layer with its bias, in fp32."""
        weight, bias = _numbers(linear.weight).T, _numbers(linear.bias)
        return self.graph.add(
            "Gemm", rows, self.graph.constant(name, weight), self.graph.constant(f"{name}.bias", bias)
        )

    def _attention(self, name: str, part: Any, queries: Operand, keys: Operand, shape: str) -> str:
        graph = self.graph
        inputs, biases = [], []
        for kind, linear, operand, cube in (
            ("query", part.query, queries, shape),
            ("key", part.key, keys, self._cube),
            ("value", part.value, keys, self._cube),
        ):
            product, bias = self._product(f"{name}.{kind}", linear, operand)
            inputs.append(graph.add("Reshape", product, cube))
            biases.append(bias)
        inputs += [graph.constant(f"{name}.bias", np.concatenate(biases)), self._mask]
        return self._rows(graph.add("MultiHeadAttention", *inputs, extra=True, num_heads=self._heads))

    def _product(self, name: str, linear: nn.Linear, operand: Operand) -> tuple[str, Floats]:
        weight, bias = _numbers(linear.weight).T, _numbers(linear.bias)
        return self._arithmetic.multiply(self.graph, operand, weight, bias, name)

    def _summed(self, name: str, norm: nn.LayerNorm, rows: str, bias: Floats, others: str) -> str:
        biased = self.graph.add("Add", rows, self.graph.constant(f"{name}.bias", bias))
        return self._normalised(name, norm, self.graph.add("Add", biased, others))

    def _normalised(self, name: str, norm: nn.LayerNorm, values: str) -> str:
        gamma = self.graph.constant(f"{name}.gamma", _numbers(norm.weight))
        beta = self.graph.constant(f"{name}.beta", _numbers(norm.bias))
        return self.graph.add("LayerNormalization", values, gamma, beta, axis=-1, epsilon=float(norm.eps))

    def _rows(self, values: str) -> str:
        return self.graph.add("Reshape", values, self.graph.integers(-1, self.width))


def _numbers(tensor: Any) -> Floats:
    """As float32."""
    numbers: Floats = tensor.detach().float().numpy()
    return numbers
