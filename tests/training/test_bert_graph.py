"""The graphs that are written for BERT models against the models themselves, and texts beside others."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from tests.training.berts import padded, tiny_classifier
from training.graphs.arithmetic import Int8
from training.graphs.bert import write_classifier, write_encoder
from training.graphs.onnx_graph import Graph

ROWS = [[101, 7, 8, 9, 102], [101, 7, 102], [101, 11, 12, 13, 14, 15, 102]]
Floats = NDArray[np.float32]


def run(graph: Path | bytes, *rows: list[int]) -> Floats:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    ids, mask = padded(rows)
    return np.asarray(session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0])


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    write_classifier(tiny_classifier(), folder)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(tiny_classifier().bert, folder)
    return folder


def logits() -> Floats:
    ids, mask = padded(ROWS)
    with torch.no_grad():
        return np.asarray(tiny_classifier()(ids, attention_mask=mask).logits)


def vectors() -> Floats:
    ids, mask = padded(ROWS)
    with torch.no_grad():
        hidden = tiny_classifier().bert(ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return np.asarray(mean / mean.norm(dim=1, keepdim=True))


def test_classifiers_are_exact_in_fp32(classifiers: Path) -> None:
    np.testing.assert_allclose(run(classifiers / "model.onnx", *ROWS), logits(), atol=2e-5, rtol=2e-5)


def test_encoders_are_exact_in_fp32(encoders: Path) -> None:
    np.testing.assert_allclose(run(encoders / "model.onnx", *ROWS), vectors(), atol=2e-6)


def test_int8_is_close(classifiers: Path, encoders: Path) -> None:
    found, expected = run(classifiers / "model-int8.onnx", *ROWS), logits()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert (run(encoders / "model-int8.onnx", *ROWS) * vectors()).sum(axis=1).min() > 0.995


@pytest.mark.parametrize("file", ["model.onnx", "model-int8.onnx"])
def test_neighbours_and_padding_change_nothing(classifiers: Path, encoders: Path, file: str) -> None:
    for folder in (classifiers, encoders):
        together = run(folder / file, *ROWS)
        alone = np.concatenate([run(folder / file, row) for row in ROWS])
        np.testing.assert_allclose(together, alone, atol=1e-5, rtol=1e-5)


def test_the_int8_graph_is_small(encoders: Path) -> None:
    small, large = ((encoders / name).stat().st_size for name in ("model-int8.onnx", "model.onnx"))
    assert small < 0.4 * large


def test_other_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GELU, not relu"):
        write_classifier(tiny_classifier(hidden_act="relu"), tmp_path)


@given(
    rows=arrays.arrays(np.float32, (5, 16), elements=st.floats(-50, 50, width=32)),
    weight=arrays.arrays(np.float32, (16, 3), elements=st.floats(-2, 2, width=32)),
    has_least=st.booleans(),
)
def test_products_are_as_exact_as_a_byte(rows: Floats, weight: Floats, *, has_least: bool) -> None:
    """Each number is off by half a level at most, of its row's largest or its column's."""
    rows[:, 0] += 60  # no row is zero
    bias = np.array([1, -2, 0], np.float32)
    graph = Graph()
    least = -50.0 if has_least else None
    count = graph.add("Slice", graph.add("Shape", "rows"), graph.integers(0), graph.integers(1))
    operand = Int8().operand(graph, "rows", count, least)
    product, rest = Int8().multiply(graph, operand, weight, bias, "weight")
    found = run_rows(graph, product, rows) + rest
    levels = 255 if has_least else 127
    reach = np.abs(rows - (least or 0)).max(axis=1, keepdims=True)
    columns = np.abs(weight).max(axis=0, keepdims=True)
    off_rows, off_columns = 0.51 * reach / levels, 0.51 * columns / 63
    allowed = 16 * (reach * off_columns + off_rows * columns + off_rows * off_columns) + 1e-3
    assert (np.abs(found - (rows @ weight + bias)) <= allowed).all()


def run_rows(graph: Graph, product: str, rows: Floats) -> Floats:
    inputs = [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["count", 16])]
    model = graph.model(inputs, product, "product", 3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"rows": rows})[0])
