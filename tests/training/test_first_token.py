"""Leaving out what no one reads must not change what is read."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from training.export import export
from training.first_token import Classifier
from training.half_frozen import HalfFrozen

ROWS = [[101, 7, 8, 9, 102], [101, 7, 102], [101, 11, 12, 13, 14, 15, 102]]


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=8000, hidden_size=24, num_hidden_layers=4, num_attention_heads=3, num_labels=3)
    return BertForSequenceClassification(config).eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros((len(ROWS), max(map(len, ROWS))), dtype=torch.long)
    for row, values in enumerate(ROWS):
        ids[row, : len(values)] = torch.tensor(values)
    return ids, (ids != 0).long()


@pytest.mark.parametrize("frozen", [0, 3])
def test_half_frozen_is_exact(model: BertForSequenceClassification, frozen: int) -> None:
    ids, mask = padded()
    done: list[int] = []
    with torch.no_grad():
        half = HalfFrozen(model.bert, frozen, ROWS, done.append)
        expected = model.bert(ids, attention_mask=mask).pooler_output
        torch.testing.assert_close(half.pooled(range(len(ROWS))), expected, atol=1e-6, rtol=1e-5)
    assert sum(done) == len(ROWS)


def test_the_exported_graph_is_exact(model: BertForSequenceClassification, tmp_path: Path) -> None:
    ids, mask = padded()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    export(Classifier(model), tmp_path / "model.onnx", "logits")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
